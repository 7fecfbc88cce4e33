//! Conversations in the template that came with a model.

use rwkv_edge::ChatTemplate;

use super::thoughts::{say, state_after, thinker};
use super::*;

const WORLD: &str =
    "{{ bos_token }}{% for m in messages %}{{ {'system': 'System', 'user': 'User', \
                     'assistant': 'Assistant'}[m.role] ~ ': ' ~ m.content ~ '\n\n' }}{% endfor %}\
                     {% if add_generation_prompt %}Assistant:{% endif %}";

fn begin(model: &Model, text: &str) -> Result<Conversation> {
    let template = Template::of_files(ChatTemplate::new("here", text), model)?;
    Conversation::new(model, template, "Be kind.", Options::new())
}

#[test]
fn each_turn_is_read_once_behind_token_0() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let mut conversation = begin(&model, WORLD)?;
    let turn = "User: Hi\n\nAssistant: Yes\n\nNo\n\n";
    let first = format!("System: Be kind.\n\n{turn}");
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert_eq!((&*answer.text, answer.ending), ("Yes\n\nNo", Ending::Stop));
    assert!(*conversation.session().state() == state_after(&model, &[0], &[&first])?);
    let (answer, _) = say(&mut conversation, "Hi")?;
    let n = model.tokenizer()?.encode("User: Hi\n\nAssistant:")?.len();
    assert_eq!(answer.n_prompt_tokens, n);
    assert!(*conversation.session().state() == state_after(&model, &[0], &[&first, turn])?);

    // Saved, it goes on with the same template, which the file does not hold.
    let path = folder.path().join("talk");
    conversation.save(&path)?;
    let mut other = begin(&model, WORLD)?;
    assert_eq!(other.load(&path)?.n_turns, Ok(2));
    say(&mut other, "Hi")?;
    assert!(*other.session().state() == state_after(&model, &[0], &[&first, turn, turn])?);
    let mut other = Conversation::new(&model, plain(), "", Options::new())?;
    let reason = other.load(&path)?.n_turns.expect_err("no template");
    assert!(reason.contains("the model's own template"), "{reason}");
    Ok(())
}

/// Some templates write earlier turns otherwise once there are more.
#[test]
fn a_conversation_that_is_written_anew_is_read_anew() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let text = "{{ messages | length }} {{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}";
    let mut conversation = begin(&model, text)?;
    for expected in ["3 Yes\n\nNo", "5 Yes\n\nNo"] {
        let (answer, _) = say(&mut conversation, "Hi")?;
        assert_eq!(answer.text, "Yes\n\nNo");
        assert!(*conversation.session().state() == state_after(&model, &[], &[expected])?);
    }
    Ok(())
}

#[test]
fn a_word_of_older_files_is_the_form_of_the_world_models() -> Result<()> {
    let model = demo()?;
    let found = ChatTemplate::new("here", "rwkv-world");
    let template = Template::of_files(found, &model)?;
    assert_eq!(template, "world".parse()?);
    let error = Template::of_files(ChatTemplate::new("here", "\n{% x %}"), &model).err();
    let error = error.expect("no Jinja").to_string();
    assert!(
        error.starts_with("here: chat template: line 2: "),
        "{error}"
    );
    Ok(())
}
