//! Sessions of several servers, how many there may be, and what is damaged.

use std::path::Path;

use rwkv_edge_serve::store::DiskOptions;
use rwkv_edge_serve::{Event, Job, Owner, Start, Worker};

use crate::support::{fails, in_folder, job, run, worker, worker_with, TEXT};

fn in_session(name: &str) -> impl Fn(&mut Job) + '_ {
    move |job| {
        job.start = Start::Session {
            name: name.into(),
            first: Some(0),
        };
    }
}

#[test]
fn servers_that_share_a_folder_do_not_work_on_one_session_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (in_folder(folder.path()), in_folder(folder.path()));
    let owner = Owner::new("");
    let (endless, mut events) = job(TEXT, |job| {
        in_session("a")(job);
        job.max_new_tokens = None;
    });
    one.submit(endless);
    while !matches!(events.blocking_recv(), Some(Event::Token { .. })) {}
    let error = fails(&other, " And", in_session("a"));
    assert!(error.contains("one at a time"), "{error}");
    assert!(other.delete_session(&owner, "a").is_err());
    // Another session is free, and so is this one when it has ended.
    run(&other, TEXT, in_session("b"));
    drop(events);
    while one.metrics().sequences_running.get() > 0 {
        std::thread::yield_now();
    }
    // Turn by turn each goes on where the other was.
    let mut n_tokens = 0;
    for i in 0..6 {
        let here = if i % 2 == 0 { &one } else { &other };
        let answer = run(here, " And then?", in_session("a"));
        assert!(answer.n_prompt < 12, "{answer:?}");
        let info = here.session(&owner, "a").expect("readable").expect("one");
        assert!(info.n_tokens > n_tokens, "{info:?}");
        n_tokens = info.n_tokens;
    }
    let names = std::fs::read_dir(folder.path()).expect("readable");
    let names = names.map(|entry| entry.expect("readable").file_name());
    let n_locks = names
        .filter(|name| name.to_string_lossy().ends_with(".lock"))
        .count();
    assert_eq!(n_locks, 0);
}

/// Where an answer and what comes next are cut into tokens together there may be others than where each is for itself.
#[test]
fn a_session_reads_what_is_read_of_the_whole_text() {
    let (one, other) = (worker(), worker());
    let turn = |worker: &Worker, prompt: &str, session: bool| {
        run(worker, prompt, |job| {
            if session {
                in_session("a")(job);
            }
            job.remains = Some(Box::new(|text| Some(format!("{text}\n\n"))));
        })
    };
    let mut whole = String::new();
    for asked in [TEXT, "And then?", "Why?", "So"] {
        whole += asked;
        let in_session = turn(&one, asked, true);
        let of_text = turn(&other, &whole, false);
        assert_eq!(in_session.tokens, of_text.tokens, "{whole}");
        whole += &format!("{}\n\n", of_text.text);
    }
    // Its bytes go on as it does.
    let bytes = one.export_session(&Owner::new(""), "a").expect("readable");
    other
        .import_session(&Owner::new(""), "a", &bytes.expect("one"))
        .expect("imported");
    let (here, there) = (turn(&one, "Well", true), turn(&other, "Well", true));
    assert_eq!((here.n_prompt, here.tokens), (there.n_prompt, there.tokens));
}

fn few(folder: Option<&Path>) -> Worker {
    worker_with(|options| {
        options.sessions_max = 2;
        options.disk = folder.map(|folder| DiskOptions {
            folder: folder.into(),
            n_bytes_max: 1 << 30,
        });
    })
}

#[test]
fn there_are_only_so_many_sessions() {
    let folder = tempfile::tempdir().expect("a folder");
    let owner = Owner::new("");
    for folder in [None, Some(folder.path())] {
        let worker = few(folder);
        run(&worker, TEXT, in_session("a"));
        run(&worker, TEXT, in_session("b"));
        let error = fails(&worker, TEXT, in_session("c"));
        assert!(error.contains("as many sessions as may be"), "{error}");
        assert!(worker.fork_session(&owner, "a", "c").is_err());
        let bytes = worker.export_session(&owner, "a").expect("readable");
        let bytes = bytes.expect("one");
        assert!(worker.import_session(&owner, "c", &bytes).is_err());
        // Those that there are go on, those of others are others', and one that is deleted makes room.
        worker
            .import_session(&owner, "a", &bytes)
            .expect("replaced");
        run(&worker, " And", in_session("b"));
        run(&worker, TEXT, |job| {
            in_session("c")(job);
            job.owner = Owner::new("other");
        });
        assert!(worker.delete_session(&owner, "a").expect("removed"));
        run(&worker, TEXT, in_session("c"));
        assert!(worker.fork_session(&owner, "b", "d").is_err());
    }
    // What is in the folder counts from the start on.
    let error = fails(&few(Some(folder.path())), TEXT, in_session("d"));
    assert!(error.contains("as many sessions as may be"), "{error}");
}

#[test]
fn a_damaged_file_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = in_folder(folder.path());
    let owner = Owner::new("");
    run(&worker, TEXT, in_session("a"));
    let bytes = worker.export_session(&owner, "a").expect("readable");
    let damage = || {
        for entry in std::fs::read_dir(folder.path()).expect("readable") {
            let path = entry.expect("readable").path();
            if path.to_string_lossy().ends_with(".session") {
                std::fs::write(path, "{\"name\": \"a").expect("written");
            }
        }
    };
    damage();
    let error = fails(&worker, " And", in_session("a"));
    assert!(error.contains("its file is damaged"), "{error}");
    assert!(worker.session(&owner, "a").is_err());
    assert_eq!(worker.sessions(&owner).expect("the others"), []);
    worker
        .import_session(&owner, "a", &bytes.expect("one"))
        .expect("replaced");
    run(&worker, " And", in_session("a"));
    damage();
    assert!(worker.delete_session(&owner, "a").expect("removed"));
    run(&worker, TEXT, in_session("a"));
}
