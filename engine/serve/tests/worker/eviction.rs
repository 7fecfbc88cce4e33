//! Which states go first where there is not enough memory for all of them.

use rwkv_edge_serve::{Job, Owner, Start, Worker};

use crate::support::{model, run, worker_with, Answer, TEXT};

/// What the index counts for a state beside its numbers.
const ENTRY_BYTES: u64 = 512;

/// A worker that has memory for so many states, and none for a folder.
fn with_room_for(n_states: u64) -> Worker {
    let size = model().new_state().size_bytes() as u64 + ENTRY_BYTES;
    worker_with(|options| options.state_memory = n_states * size)
}

/// A turn of a conversation, whose text so far this appends to.
fn turn(worker: &Worker, so_far: &mut String, asked: &str) -> Answer {
    *so_far += &format!("{asked}\n\nAnswer:");
    let answer = run(worker, so_far, |job| job.max_new_tokens = Some(3));
    *so_far += &format!("{}\n\nQuestion: ", answer.text);
    answer
}

fn n_read(answer: &Answer) -> usize {
    answer.n_prompt - answer.n_cached
}

#[test]
fn as_many_conversations_go_on_as_there_is_room_for_states() {
    const N: usize = 200;
    let worker = with_room_for(N as u64 * 11 / 10);
    let mut conversations: Vec<String> = (0..N).map(|i| format!("{i}. ")).collect();
    for so_far in &mut conversations {
        let first = turn(&worker, so_far, TEXT);
        assert!(first.n_prompt > 72, "more than is read again: {first:?}");
    }
    // Each round in another order: 77 has no factor in common with the number of conversations.
    for round in 1..=2 {
        let mut n_forgotten = 0;
        for i in 0..N {
            let so_far = &mut conversations[(i * 77 + round) % N];
            n_forgotten += usize::from(n_read(&turn(&worker, so_far, "And then?")) > 64);
        }
        assert_eq!(n_forgotten, 0, "of {N} in round {round}");
    }
}

/// Text that several conversations begin with, of more than 64 tokens, so that there is a state inside it.
fn shared() -> String {
    format!("{TEXT}\n\nQuestion: ")
}

#[test]
fn what_conversations_share_outlives_many_others() {
    let worker = with_room_for(130);
    for asked in ["What is a slice?", "Who owns it?", "What does it borrow?"] {
        turn(&worker, &mut shared(), asked);
    }
    for i in 0..100 {
        turn(&worker, &mut format!("{i}. "), "What is this?");
    }
    let again = turn(&worker, &mut shared(), "Where is it in memory?");
    assert!(again.n_cached >= 64, "{again:?}");
}

#[test]
fn what_conversations_share_is_learnt_where_memory_is_full_of_others() {
    let worker = with_room_for(100);
    for i in 0..120 {
        turn(&worker, &mut format!("{i}. "), "What is this?");
    }
    let first = turn(&worker, &mut shared(), "What is a slice?");
    assert_eq!(first.n_cached, 0);
    // One that is asked again, and one that begins alike.
    let same = turn(&worker, &mut shared(), "What is a slice?");
    assert_eq!(n_read(&same), 1, "{same:?}");
    let second = turn(&worker, &mut shared(), "Who owns it?");
    assert!(second.n_cached >= 64, "{second:?}");
}

#[test]
fn a_session_keeps_its_state_while_another_goes_on_from_it() {
    let worker = with_room_for(24);
    let owner = Owner::new("");
    let in_session = |name: &str, prompt: &str| {
        let start = |job: &mut Job| {
            job.start = Start::Session {
                name: name.into(),
                first: Some(0),
            };
        };
        run(&worker, prompt, start)
    };
    in_session("a", "What is a slice?");
    worker.fork_session(&owner, "a", "b").expect("forked");
    in_session("a", " And then?");
    for i in 0..16 {
        turn(&worker, &mut format!("{i}. "), "What is this?");
    }
    let next = in_session("b", " Why?");
    assert!(next.n_prompt < 12, "only what is new: {next:?}");
}
