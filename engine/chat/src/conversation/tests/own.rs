//! Conversations in the template that came with a model.

use rwkv_edge::{ChatTemplate, ErrorKind};

use super::thoughts::{say, state_after, thinker};
use super::*;
use crate::{Message, Role};

const WORLD: &str =
    "{{ bos_token }}{% for m in messages %}{{ {'system': 'System', 'user': 'User', \
                     'assistant': 'Assistant'}[m.role] ~ ': ' ~ m.content ~ '\n\n' }}{% endfor %}\
                     {% if add_generation_prompt %}Assistant:{% endif %}";

fn begin(model: &Model, text: &str) -> Result<Conversation> {
    let template = Template::of_files(ChatTemplate::new("here", text), model)?;
    Conversation::new(model, template, "Be kind.", Options::new())
}

/// As many published ones: roles must take turns, and the last message is the user's.
const STRICT: &str =
    "{% if messages[-1].role != 'user' %}{{ raise_exception('the user has the last word') }}{% endif %}\
     {% for m in messages %}{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[m.role] }}: \
     {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// Asks for thoughts as those of the G1 models do.
const THINKING: &str = "{% for m in messages %}{{ {'system': 'System', 'user': 'User', \
     'assistant': 'Assistant'}[m.role] ~ ': ' ~ m.content ~ '\n\n' }}{% endfor %}\
     {% if add_generation_prompt %}Assistant:{% if enable_thinking is defined %}\
     {{ ' <think' if enable_thinking else ' <think></think' }}{% endif %}{% endif %}";

/// The state after these texts, of which each is cut into tokens by itself, and then these tokens.
fn state_behind(model: &Model, texts: &[&str], tokens: &[u32]) -> Result<State> {
    let mut session = model.session();
    for text in texts {
        session.eval(&model.tokenizer()?.encode(text)?)?;
    }
    if !tokens.is_empty() {
        session.eval(tokens)?;
    }
    Ok(session.state().clone())
}

fn n_tokens(model: &Model, text: &str) -> Result<usize> {
    Ok(model.tokenizer()?.encode(text)?.len())
}

#[test]
fn each_turn_is_read_once_behind_token_0() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let mut conversation = begin(&model, WORLD)?;
    let turn = " Hi\n\nAssistant: Yes\n\nNo\n\nUser:";
    let first = format!("System: Be kind.\n\nUser:{turn}");
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert_eq!((&*answer.text, answer.ending), ("Yes\n\nNo", Ending::Stop));
    // The model has written no space in front of its answer, but the template does; so that is what was said.
    let said = "System: Be kind.\n\nUser: Hi\n\nAssistant: Yes\n\nNo";
    assert!(*conversation.session().state() == state_after(&model, &[0], &[said])?);
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert_eq!(
        answer.n_prompt_tokens,
        n_tokens(&model, "\n\nUser: Hi\n\nAssistant:")?
    );
    let two = format!("{first} Hi\n\nAssistant: Yes\n\nNo");
    assert!(*conversation.session().state() == state_after(&model, &[0], &[&two])?);

    // Saved, it goes on with the same template, which the file does not hold, and without reading anything again.
    let path = folder.path().join("talk");
    conversation.save(&path)?;
    let mut other = begin(&model, WORLD)?;
    assert_eq!(other.load(&path)?.n_turns, Ok(2));
    let (answer, _) = say(&mut other, "Hi")?;
    assert_eq!(
        answer.n_prompt_tokens,
        n_tokens(&model, "\n\nUser: Hi\n\nAssistant:")?
    );
    let three = format!("{two}\n\nUser: Hi\n\nAssistant: Yes\n\nNo");
    assert!(*other.session().state() == state_after(&model, &[0], &[&three])?);
    // A file that does not say which tokens were read, or of others, is read from the beginning.
    let text_path = folder.path().join("talk.json");
    let text = std::fs::read_to_string(&text_path).expect("was written");
    for changed in [
        text.replace("\"tokens_hash\": \"", "\"tokens_hash\": \"0"),
        text.replace("tokens_hash", "other"),
    ] {
        std::fs::write(&text_path, changed).expect("can be written");
        let mut other = begin(&model, WORLD)?;
        assert_eq!(other.load(&path)?.n_turns, Ok(2));
        say(&mut other, "Hi")?;
        assert!(*other.session().state() == state_after(&model, &[0], &[&three])?);
    }
    let mut other = Conversation::new(&model, plain(), "", Options::new())?;
    let reason = other.load(&path)?.n_turns.expect_err("no template");
    assert!(reason.contains("the model's own template"), "{reason}");

    // What was taken back is read no more.
    assert!(matches!(conversation.undo()?, Some(Undone::Turn(_))));
    let (answer, _) = say(&mut conversation, "You")?;
    assert_eq!(
        answer.n_prompt_tokens,
        n_tokens(&model, "\n\nUser: You\n\nAssistant:")?
    );
    let two = format!("{first} You\n\nAssistant: Yes\n\nNo");
    assert!(*conversation.session().state() == state_after(&model, &[0], &[&two])?);
    conversation.reset()?;
    say(&mut conversation, "Hi")?;
    assert!(*conversation.session().state() == state_after(&model, &[0], &[said])?);
    Ok(())
}

/// Where the model writes just what the template does, not even the answer is read again.
#[test]
fn what_the_model_has_written_is_not_read_again() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let text = "{% for m in messages %}{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[m.role] }}:\
                {{ m.content ~ '\n\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";
    let mut conversation = begin(&model, text)?;
    let mut read = vec![
        "System:Be kind.\n\nUser:Hi\n\nAssistant:",
        "Yes\n\nNo\n\nUser:",
    ];
    say(&mut conversation, "Hi")?;
    assert!(*conversation.session().state() == state_behind(&model, &read, &[])?);
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert_eq!(
        answer.n_prompt_tokens,
        n_tokens(&model, "Hi\n\nAssistant:")?
    );
    read.extend(["Hi\n\nAssistant:", "Yes\n\nNo\n\nUser:"]);
    assert!(*conversation.session().state() == state_behind(&model, &read, &[])?);
    Ok(())
}

#[test]
fn templates_may_insist_on_the_users_last_word() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let mut conversation = begin(&model, STRICT)?;
    for n in 1..4 {
        let (answer, _) = say(&mut conversation, "Hi")?;
        assert_eq!(answer.text, "Yes\n\nNo");
        assert_eq!(conversation.transcript().turns.len(), n);
    }
    Ok(())
}

#[test]
fn thoughts_are_asked_for_and_leave_no_trace() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let mut conversation = begin(&model, THINKING)?;
    let begun = "System: Be kind.\n\n";
    let turn = "User: Hi\n\nAssistant: Yes\n\nNo";
    let mut said = format!("{begun}{turn}");
    for (think, thought) in [
        (Think::On, Some("Ab\n\nc")),
        (Think::Off, None),
        (Think::On, Some("Ab\n\nc")),
    ] {
        conversation.set_think(think)?;
        let (answer, _) = say(&mut conversation, "Hi")?;
        assert_eq!(answer.text, "Yes\n\nNo", "{think}");
        assert_eq!(answer.thought.as_deref(), thought, "{think}");
        assert!(
            *conversation.session().state() == state_behind(&model, &[&said], &[])?,
            "{think}"
        );
        if said.len() > begun.len() + turn.len() {
            let opening = match think {
                Think::Off => "",
                _ => " <think",
            };
            let n = n_tokens(&model, &format!("\n\nUser: Hi\n\nAssistant:{opening}"))?;
            assert_eq!(answer.n_prompt_tokens, n, "only what is new is read");
        }
        said = format!("{said}\n\n{turn}");
    }
    conversation.set_think(Think::Fake)?;
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert!(answer.text.starts_with("Ab"), "{}", answer.text);
    assert_eq!(answer.thought.as_deref(), Some(""));
    for think in [Think::Short, Think::Long] {
        let error = conversation.set_think(think).expect_err("no lengths");
        assert!(
            error.to_string().contains("expected on, fake or off"),
            "{error}"
        );
    }
    let error = begin(&model, WORLD)?.set_think(Think::On);
    let error = error.expect_err("no thoughts");
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("enable_thinking"), "{error}");
    Ok(())
}

/// Nobody asked for the thought, but the template opens it, or the model does.
#[test]
fn thoughts_that_come_unasked_leave_no_trace_either() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let text = WORLD.replace(
        "{% if add_generation_prompt %}Assistant:",
        "{% if add_generation_prompt %}Assistant: <think>",
    );
    let (tell, told) = std::sync::mpsc::channel();
    let options = Options::new().on_event(move |event| {
        if let Event::Thought(piece) = event {
            let _ = tell.send(piece.to_owned());
        }
    });
    let template = Template::of_files(ChatTemplate::new("here", text), &model)?;
    let mut conversation = Conversation::new(&model, template, "", options)?;
    let mut said = "User: Hi\n\nAssistant: Yes\n\nNo".to_owned();
    for _ in 0..2 {
        let (answer, text) = say(&mut conversation, "Hi")?;
        assert_eq!((&*answer.text, &*text), ("Yes\n\nNo", "\nYes\n\nNo"));
        assert_eq!(answer.thought.as_deref(), Some("Ab\n\nc"));
        assert_eq!(told.try_iter().collect::<String>(), "Ab\n\nc");
        let turns = &conversation.transcript().turns;
        assert!(turns.iter().all(|turn| turn.answer == "Yes\n\nNo"));
        assert!(*conversation.session().state() == state_after(&model, &[0], &[&said])?);
        said += "\n\nUser: Hi\n\nAssistant: Yes\n\nNo";
    }
    Ok(())
}

/// Some templates write earlier turns otherwise once there are more.
#[test]
fn a_conversation_that_is_written_anew_is_read_anew() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let text = "{{ messages | length }} {{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}";
    let mut conversation = begin(&model, text)?;
    for expected in ["2 Hi:", "4 Hi:"] {
        let (answer, _) = say(&mut conversation, "Hi")?;
        assert_eq!(answer.text, "Yes\n\nNo");
        assert_eq!(answer.n_prompt_tokens, n_tokens(&model, expected)?);
        // What the model wrote is behind that, for nothing else says what was answered.
        let written = ["Yes", "\n\nNo", "\n\nUser:"].map(|text| model.tokenizer()?.encode(text));
        let written: Vec<u32> = written.into_iter().collect::<Result<Vec<_>>>()?.concat();
        assert!(*conversation.session().state() == state_behind(&model, &[expected], &written)?);
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

/// All tokens of a conversation, as a program feeds them that keeps it itself.
fn whole(
    model: &Model,
    template: &Template,
    turns: &[(&str, &str)],
    message: &str,
    think: Think,
) -> Result<Vec<u32>> {
    let say = Message::new;
    let mut messages = vec![say(Role::System, "Be kind.")];
    for (user, answer) in turns {
        messages.extend([say(Role::User, user), say(Role::Assistant, answer)]);
    }
    messages.push(say(Role::User, message));
    let parts = template.messages(&messages, think)?;
    let mut tokens: Vec<u32> = match template.own() {
        Some(_) => Vec::new(),
        None => template.first_token(model).into_iter().collect(),
    };
    for (i, part) in parts.iter().enumerate() {
        tokens.extend((i > 0).then_some(0));
        tokens.extend(model.tokenizer()?.encode(part)?);
    }
    Ok(tokens)
}

/// What a program that keeps conversations itself feeds is what a conversation has read.
#[test]
fn whole_prompts_are_those_of_conversations() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let own = Template::of_files(ChatTemplate::new("here", THINKING), &model)?;
    let first = Template::of_files(ChatTemplate::new("here", WORLD), &model)?;
    for (template, think) in [
        ("world".parse()?, Think::Off),
        ("g1".parse()?, Think::On),
        ("g1".parse()?, Think::Long),
        ("raven".parse()?, Think::Off),
        (own.clone(), Think::On),
        (first, Think::Off),
    ] {
        let options = Options::new().think(think);
        let mut conversation = Conversation::new(&model, template.clone(), "Be kind.", options)?;
        let mut turns: Vec<(&str, String)> = Vec::new();
        for message in ["Hi", "Hi\n\nyou", " Hi "] {
            let said: Vec<(&str, &str)> = turns
                .iter()
                .map(|(user, answer)| (*user, &**answer))
                .collect();
            let whole = whole(&model, &template, &said, message, think)?;
            let before = conversation.session().state().clone();
            let prompt = conversation.prompt(message, think)?;
            match template.own() {
                Some(_) => assert_eq!(whole[..], prompt.tokens[..], "{template} {think}"),
                // Turn by turn a text is cut into other tokens than as a whole.
                None => {
                    let tokenizer = model.tokenizer()?;
                    let [whole, new] =
                        [&whole[..], &prompt.tokens[..]].map(|ids| tokenizer.decode(ids));
                    let (whole, new) = (whole?, new?);
                    assert!(
                        whole.ends_with(&new),
                        "{template} {think}: {whole:?} {new:?}"
                    );
                }
            }
            conversation.session.restore(&before, &[])?;
            let (answer, _) = say(&mut conversation, message)?;
            turns.push((message, answer.text));
        }
    }
    let error = whole(&model, &own, &[], "Hi", Think::Long).err();
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Argument));
    Ok(())
}
