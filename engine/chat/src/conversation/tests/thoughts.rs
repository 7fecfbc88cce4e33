//! Thoughts in front of answers, and the token that conversations of RWKV-7 begin with.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};

use super::*;

/// Tokens beside those of the bytes, which are one more than the byte.
const LONGER: [(u32, &str); 7] = [
    (257, "think"),
    (258, "thin"),
    (259, ">\n"),
    (260, "\n\nUser:"),
    (261, "\n\n"),
    (262, "Yes"),
    (263, "\n\nNo"),
];
const N_VOCAB: usize = 272;

fn byte(c: char) -> u32 {
    c as u32 + 1
}

fn write_vocabulary(folder: &Path) -> PathBuf {
    let bytes = (0..=255).map(|byte: u32| match byte {
        0..=127 => format!("{} '\\x{byte:02x}' 1\n", byte + 1),
        _ => format!("{} b'\\x{byte:02x}' 1\n", byte + 1),
    });
    let longer = LONGER.iter();
    let longer =
        longer.map(|(id, text)| format!("{id} '{}' {}\n", text.escape_default(), text.len()));
    let lines: String = bytes.chain(longer).collect();
    let path = folder.join("rwkv_vocab.txt");
    fs::write(&path, lines).expect("can be written");
    path
}

fn world() -> Template {
    "world".parse().expect("a template")
}

/// Thinks "Ab", a blank line and "c", and answers with two paragraphs.
fn thinker(folder: &Path) -> Result<Model> {
    let script = [
        (257, byte('>')),
        (byte('>'), byte('A')),
        (byte('A'), byte('b')),
        (byte('b'), 261),
        (261, byte('c')),
        (byte('c'), byte('<')),
        (byte('<'), byte('/')),
        (byte('/'), 258),
        (258, byte('k')),
        (byte('k'), 259),
        (259, 262),
        (262, 263),
        (263, 260),
        // Without thoughts.
        (byte(':'), 262),
    ];
    let path = tiny::write_script(folder, N_VOCAB, &script);
    let options = rwkv_edge::Options::new().quant(rwkv_edge::Quant::Int8);
    Model::open(path, &options.tokenizer(write_vocabulary(folder)))
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

fn say(conversation: &mut Conversation, message: &str) -> Result<(Answer, String)> {
    let mut text = String::new();
    let answer = conversation.say(message, &mut |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    })?;
    Ok((answer.expect("nobody interrupts"), text))
}

/// The state after these texts, each of which is cut into tokens by itself.
fn state_after(model: &Model, first: &[u32], texts: &[&str]) -> Result<State> {
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
    let v7 = Model::open(golden, &options.tokenizer(write_vocabulary(folder.path())))?;
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
