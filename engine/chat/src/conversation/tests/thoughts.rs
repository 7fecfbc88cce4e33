//! Thoughts in front of answers, and the token that conversations of RWKV-7 begin with.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};

use rwkv_edge::ErrorKind;

use super::*;

fn world() -> Template {
    "world".parse().expect("a template")
}

pub(super) fn thinker(folder: &Path) -> Result<Model> {
    let (path, tokenizer) = tiny::write_thinker(folder);
    let options = rwkv_edge::Options::new().quant(rwkv_edge::Quant::Int8);
    Model::open(path, &options.tokenizer(tokenizer))
}

/// A conversation, and the thoughts in it.
fn begin(model: &Model, think: Think) -> Result<(Conversation, Receiver<String>)> {
    let (tell, told) = mpsc::channel();
    let options = Options::new().think(think).on_event(move |event| {
        if let Event::Thought(piece) = event {
            let _ = tell.send(piece.to_owned());
        }
    });
    let conversation = Conversation::new(model, world(), "Be kind.", options)?;
    Ok((conversation, told))
}

pub(super) fn say(conversation: &mut Conversation, message: &str) -> Result<(Answer, String)> {
    let mut text = String::new();
    let answer = conversation.say(message, &mut |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    })?;
    Ok((answer.expect("nobody interrupts"), text))
}

/// The state after these texts, each of which is cut into tokens by itself.
pub(super) fn state_after(model: &Model, first: &[u32], texts: &[&str]) -> Result<State> {
    let mut session = model.session();
    if !first.is_empty() {
        session.eval(first)?;
    }
    for text in texts {
        let tokens = model.tokenizer()?.encode(text)?;
        session.eval(&tokens)?;
    }
    Ok(session.state().clone())
}

#[test]
fn thoughts_are_told_and_leave_no_trace() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let (mut conversation, told) = begin(&model, Think::On)?;
    let mut texts = vec!["System: Be kind.\n\n"];
    for think in [Think::On, Think::Short, Think::Long] {
        conversation.set_think(think)?;
        let (answer, text) = say(&mut conversation, "Hi\n\nyou")?;
        assert_eq!(answer.text, "Yes\n\nNo", "{think}");
        assert_eq!(text, "\nYes\n\nNo", "{think}");
        assert_eq!(answer.thought.as_deref(), Some("Ab\n\nc"), "{think}");
        assert_eq!(told.try_iter().collect::<String>(), "Ab\n\nc", "{think}");
        assert_eq!(answer.ending, Ending::Stop);
        let turn = &conversation.transcript().turns[texts.len() / 2];
        assert_eq!((&*turn.user, &*turn.answer), ("Hi\nyou", "Yes\n\nNo"));
        texts.extend(["User: Hi\nyou\n\nAssistant:", " Yes\n\nNo\n\n"]);
        let expected = state_after(&model, &[], &texts)?;
        assert!(*conversation.session().state() == expected, "{think}");
    }
    // Without thoughts a blank line is the end, as it always was.
    conversation.set_think(Think::Off)?;
    let (answer, _) = say(&mut conversation, "Hi")?;
    assert_eq!((&*answer.text, answer.thought), ("Yes", None));
    assert_eq!(told.try_iter().count(), 0);
    conversation.undo()?;
    assert!(*conversation.session().state() == state_after(&model, &[], &texts)?);
    // What follows an empty thought is the answer, to the model's own bracket.
    conversation.set_think(Think::Fake)?;
    let (answer, text) = say(&mut conversation, "Hi")?;
    assert!(text.starts_with("Ab\n\nc"), "{text}");
    assert_eq!(answer.thought.as_deref(), Some(""));
    Ok(())
}

/// Behind an answer nothing of the prompt is read again but what is behind the words that ask for a length.
#[test]
fn what_stays_of_a_prompt_is_kept() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let (mut conversation, _) = begin(&model, Think::Off)?;
    for (think, kept) in [
        (Think::Off, "User: Hi\n\nAssistant:"),
        (Think::On, "User: Hi\n\nAssistant:"),
        (Think::Fake, "User: Hi\n\nAssistant:"),
        (Think::Short, "User: Hi"),
        (Think::Long, "User: Hi"),
    ] {
        let prompt = conversation.prompt("Hi", think)?;
        let kept = model.tokenizer()?.encode(kept)?;
        assert_eq!(prompt.n_read, 0);
        assert_eq!(prompt.tokens[..prompt.n_kept], kept, "{think}");
    }
    Ok(())
}

#[test]
fn a_thought_that_is_cut_leaves_an_empty_answer() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = thinker(folder.path())?;
    let (mut conversation, told) = begin(&model, Think::On)?;
    conversation.set_max_new_tokens(7);
    let (answer, text) = say(&mut conversation, "Hi")?;
    assert_eq!((&*answer.text, &*text), ("", ""));
    assert_eq!(answer.ending, Ending::Length);
    // What may have been the end of the thought is part of it.
    assert_eq!(answer.thought.as_deref(), Some("Ab\n\nc</"));
    assert_eq!(told.try_iter().collect::<String>(), "Ab\n\nc</");
    let texts = ["System: Be kind.\n\n", "User: Hi\n\nAssistant:", "\n\n"];
    assert!(*conversation.session().state() == state_after(&model, &[], &texts)?);
    Ok(())
}

#[test]
fn thoughts_need_a_template_that_has_them() -> Result<()> {
    let model = demo()?;
    for name in ["raven", "plain", "Ann/Robot"] {
        let options = Options::new().think(Think::On);
        let error = Conversation::new(&model, name.parse()?, "", options).err();
        let error = error.expect("no thoughts there");
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains(name), "{error}");
    }
    let mut conversation = Conversation::new(&model, plain(), "", Options::new())?;
    assert!(conversation.set_think(Think::Fake).is_err());
    assert_eq!(conversation.think(), Think::Off);
    Ok(())
}

/// Only where RWKV-7 was trained so, and where nothing else comes first.
#[test]
fn conversations_of_rwkv_7_begin_with_token_0() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = "../../tests/fixtures/golden/v7-pth/model.pth";
    let options = rwkv_edge::Options::new().quant(rwkv_edge::Quant::Int8);
    let v7 = Model::open(
        golden,
        &options.tokenizer(tiny::write_vocabulary(folder.path())),
    )?;
    let v4 = thinker(folder.path())?;
    for (model, template, system, first) in [
        (&v7, "world", "", &[0][..]),
        (&v7, "g1", "Be kind.", &[0]),
        (&v7, "raven", "", &[]),
        (&v4, "world", "", &[]),
    ] {
        let template: Template = template.parse()?;
        let options = Options::new().max_new_tokens(3);
        let mut conversation = Conversation::new(model, template.clone(), system, options)?;
        for _ in 0..2 {
            let begun = match system {
                "" => model.new_state(),
                _ => state_after(model, first, &[&template.system(system)])?,
            };
            assert!(*conversation.session().state() == begun, "{template}");
            let (answer, _) = say(&mut conversation, "Hi")?;
            let n_prompt = model.tokenizer()?.encode(&template.turn("Hi"))?.len();
            let n_first = if system.is_empty() { first.len() } else { 0 };
            assert_eq!(answer.n_prompt_tokens, n_prompt + n_first, "{template}");
            let (answer, _) = say(&mut conversation, "Hi")?;
            assert_eq!(answer.n_prompt_tokens, n_prompt, "{template}");
            // Once more from the beginning.
            conversation.reset()?;
        }
    }
    Ok(())
}

/// Those that a reader of the vocabulary in Python gives for the forms as they are published.
#[test]
fn prompts_of_the_world_models_are_these_tokens() -> Result<()> {
    let Some(path) = skipped::test_data("rwkv_vocab_v20230424.txt") else {
        return Ok(());
    };
    let tokenizer = rwkv_edge::Tokenizer::open(path)?;
    let system = tokenizer.encode(&world().system("\n Be kind.\r\n"))?;
    assert_eq!(system, [40812, 59, 3673, 31214, 47, 261]);
    let (begin, end) = ([24281, 59, 3880], [261, 5585, 41693, 59]);
    for (think, length, opening) in [
        (Think::Off, &[][..], &[][..]),
        (Think::On, &[], &[295, 35762]),
        (Think::Short, &[275, 35762, 332, 21365, 42], &[295, 35762]),
        (Think::Long, &[275, 35762, 332, 22031, 42], &[295, 35762]),
        (Think::Fake, &[], &[295, 35762, 63, 11, 754, 35762]),
    ] {
        let found = tokenizer.encode(&world().turn_with("Hi\n\n", think))?;
        assert_eq!(
            found,
            [&begin[..], length, &end, opening].concat(),
            "{think}"
        );
    }
    Ok(())
}
