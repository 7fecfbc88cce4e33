//! What a conversation tells, remembers and goes back to.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use super::*;

mod own;
#[path = "../../../../tests/common/skipped.rs"]
mod skipped;
mod thoughts;
#[path = "../../../../tests/common/tiny.rs"]
mod tiny;

fn demo() -> Result<Model> {
    Model::open("../../cli/demo", &rwkv_edge::Options::default())
}

fn plain() -> Template {
    "plain".parse().expect("a template")
}

/// States to go back to are bounded, and the latest are the ones that stay.
#[test]
fn the_way_back_is_long_but_not_endless() -> Result<()> {
    let model = demo()?;
    let options = Options::new().max_new_tokens(1);
    let mut conversation = Conversation::new(&model, plain(), "", options)?;
    let n_max = UNDO_BYTES_MAX / model.new_state().size_bytes();
    for _ in 0..n_max + 5 {
        assert!(conversation.reset()?);
    }
    let said = conversation.say("Hello", &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(said.map(|answer| answer.n_tokens), Some(1));
    assert_eq!(conversation.undo_steps().0, n_max);
    assert!(conversation.undo_steps().1 <= UNDO_BYTES_MAX);
    assert!(matches!(conversation.undo()?, Some(Undone::Turn(_))));
    for _ in 1..n_max {
        assert!(matches!(conversation.undo()?, Some(Undone::Replacement)));
    }
    assert!(conversation.undo()?.is_none());
    Ok(())
}

/// Nothing has changed when an interruption comes before the first word.
#[test]
fn interrupted_before_the_answer_nothing_was_said() -> Result<()> {
    let model = demo()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let options = Options::new()
        .max_new_tokens(9)
        .interrupted(interrupted.clone());
    let mut conversation = Conversation::new(&model, plain(), "A system text.", options)?;
    let before = conversation.session.state().clone();
    let mut go_on = |_: &str| ControlFlow::Continue(());
    interrupted.store(true, Ordering::Relaxed);
    assert!(conversation.say("Hello", &mut go_on)?.is_none());
    assert!(!conversation.start_over("Another text.")?);
    assert!(*conversation.session.state() == before);
    assert_eq!(conversation.transcript.system, "A system text.");
    assert_eq!(conversation.undo_steps().0, 0);
    // A reader that has gone: the turn is taken back, too.
    interrupted.store(false, Ordering::Relaxed);
    let mut closed = |_: &str| ControlFlow::Break(());
    assert!(conversation.say("Hello", &mut closed)?.is_none());
    assert!(*conversation.session.state() == before);
    assert!(conversation.transcript.turns.is_empty());
    Ok(())
}

/// Of what takes long there is always a beginning, and an end however it went.
#[test]
fn events_tell_what_is_read() -> Result<()> {
    let model = demo()?;
    let (told, events) = std::sync::mpsc::channel();
    let interrupted = Arc::new(AtomicBool::new(false));
    let options = Options::new()
        .max_new_tokens(1)
        .interrupted(interrupted.clone())
        .on_event(move |event| {
            // What is told behind the end of the test is nobody's business.
            let _ = told.send(format!("{event:?}"));
        });
    let mut conversation = Conversation::new(&model, plain(), "", options)?;
    assert!(conversation.start_over("A system text.")?);
    let n = model.tokenizer()?.encode("A system text.\n\n")?.len();
    let found: Vec<String> = events.try_iter().collect();
    let reading = |done: usize| {
        let progress = Progress::new(ProgressUnit::Tokens, done as u64, n as u64);
        format!("{:?}", Event::Reading(progress))
    };
    assert_eq!(found, [reading(0), reading(n), "ReadingEnded".into()]);
    interrupted.store(true, Ordering::Relaxed);
    assert!(!conversation.start_over("A system text.")?);
    let found: Vec<String> = events.try_iter().collect();
    assert_eq!(found, [reading(0), "ReadingEnded".into()]);
    Ok(())
}

/// Answers of one seed differ from each other, and come again when the draws begin anew.
#[test]
fn draws_begin_anew_with_a_seed() -> Result<()> {
    let model = demo()?;
    let sampling = SamplerOptions::new().temperature(1.0).seed(7);
    let options = Options::new().sampling(sampling.clone()).max_new_tokens(12);
    let mut conversation = Conversation::new(&model, plain(), "", options)?;
    let say = |conversation: &mut Conversation| -> Result<String> {
        conversation.reset()?;
        let said = conversation.say("Ownership is", &mut |_| ControlFlow::Continue(()))?;
        Ok(said.map_or(String::new(), |answer| answer.text))
    };
    let first = say(&mut conversation)?;
    let second = say(&mut conversation)?;
    assert_ne!(first, second);
    // The same options change nothing, the same seed does.
    conversation.set_sampling(sampling.clone())?;
    assert!(![&first, &second].contains(&&say(&mut conversation)?));
    conversation.set_seed(7);
    assert_eq!(say(&mut conversation)?, first);
    // A wrong option changes nothing.
    let wrong = sampling.top_p(-1.0);
    assert!(conversation.set_sampling(wrong).is_err());
    assert_eq!(say(&mut conversation)?, second);
    Ok(())
}
