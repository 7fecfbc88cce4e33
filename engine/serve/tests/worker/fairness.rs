//! Who is answered when more is asked for than there is room for.

use std::sync::mpsc::channel;
use std::time::Duration;

use rwkv_edge_serve::{Event, Job, Owner, Worker};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::support::{job, wait, worker_with, TEXT};

/// Takes room until what it gives is dropped.
fn hold(worker: &Worker) -> UnboundedReceiver<Event> {
    let (endless, mut events) = job(TEXT, |job| {
        job.owner = Owner::new("endless");
        job.max_new_tokens = None;
    });
    worker.submit(endless);
    while !matches!(events.blocking_recv(), Some(Event::Token { .. })) {}
    events
}

/// Submits jobs of these owners with so many choices each, lets go what holds them up, and gives the owners in the order
/// in which they were answered.
fn order(worker: &Worker, held: UnboundedReceiver<Event>, asked: &[(&str, usize)]) -> Vec<String> {
    let (done, order) = channel();
    let waiting: Vec<_> = asked
        .iter()
        .enumerate()
        .map(|(i, &(owner, n_choices))| {
            let (job, events) = job(&format!("{i} {TEXT}"), |job: &mut Job| {
                job.owner = Owner::new(owner);
                job.n_choices = n_choices;
            });
            worker.submit(job);
            let (done, owner) = (done.clone(), owner.to_owned());
            std::thread::spawn(move || {
                wait(events).expect("an answer");
                done.send(owner).expect("somebody listens");
            })
        })
        .collect();
    drop(held);
    for one in waiting {
        one.join().expect("it ends");
    }
    order.try_iter().collect()
}

#[test]
fn nobody_waits_for_all_that_another_has_asked_for() {
    let worker = worker_with(|options| options.n_sequences = 1);
    let held = hold(&worker);
    let asked = [
        ("many", 1),
        ("many", 1),
        ("many", 1),
        ("many", 1),
        ("few", 1),
        ("one", 1),
    ];
    let order = order(&worker, held, &asked);
    assert_eq!(order, ["many", "few", "one", "many", "many", "many"]);
}

#[test]
fn choices_begin_as_there_is_room_for_them() {
    let worker = worker_with(|options| options.n_sequences = 2);
    let held = hold(&worker);
    // As much as there is room for in all, while another takes half of it.
    let (wide, events) = job(TEXT, |job| job.n_choices = 2);
    worker.submit(wide);
    let answers = std::thread::spawn(move || wait(events));
    for _ in 0..1000 {
        if answers.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(answers.is_finished(), "it waits for all room at once");
    let answers = answers.join().expect("no panic").expect("answers");
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer.tokens.len() == 12));
    drop(held);
}

#[test]
fn many_choices_neither_starve_others_nor_starve() {
    let worker = worker_with(|options| options.n_sequences = 1);
    let held = hold(&worker);
    let asked = [
        ("wide", 6),
        ("one", 1),
        ("one", 1),
        ("one", 1),
        ("one", 1),
        ("one", 1),
        ("one", 1),
        ("one", 1),
        ("one", 1),
    ];
    let order = order(&worker, held, &asked);
    let at = order.iter().position(|owner| owner == "wide");
    // Its sixth turn is behind the fifth of the other.
    assert_eq!(at, Some(5), "{order:?}");
}
