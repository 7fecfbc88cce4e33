//! Jobs of many kinds through one model: what is drawn, what is read again, what is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rwkv_edge::SamplerOptions;
use rwkv_edge_serve::store::DiskOptions;
use rwkv_edge_serve::{Ending, Event, Job, Owner, Prompt, Start, Worker, WorkerOptions};

mod eviction;
mod fairness;
mod sessions;
mod support;

use support::{fails, in_folder, job, model, run, wait, worker, worker_with, TEXT};

#[test]
fn an_answer_does_not_depend_on_what_else_is_drawn() {
    let alone = worker();
    let prompts: Vec<String> = (0..6)
        .map(|i| format!("{}{i}", &TEXT[i * 7..120 + i * 40]))
        .collect();
    let warm = |job: &mut Job| job.sampling = SamplerOptions::new().temperature(1.0).seed(9);
    let expected: Vec<_> = prompts
        .iter()
        .map(|p| run(&alone, p, warm).tokens)
        .collect();
    let together = worker();
    let jobs: Vec<_> = prompts.iter().map(|p| job(p, warm)).collect();
    let mut receivers = Vec::new();
    for (job, events) in jobs {
        together.submit(job);
        receivers.push(events);
    }
    for (events, expected) in receivers.into_iter().zip(expected) {
        assert_eq!(wait(events).expect("an answer")[0].tokens, expected);
    }
}

#[test]
fn a_prompt_is_read_once() {
    let worker = worker();
    let first = run(&worker, TEXT, |_| {});
    assert_eq!(first.n_cached, 0);
    let second = run(&worker, TEXT, |_| {});
    assert_eq!(second.n_cached, second.n_prompt - 1);
    assert_eq!(second.tokens, first.tokens);
    // One that goes another way behind the first 64 tokens reads what follows them.
    let other = format!("{}, which is wrong.", &TEXT[..TEXT.len() - 60]);
    let branched = run(&worker, &other, |_| {});
    assert!(branched.n_cached >= 64, "{branched:?}");
    assert_eq!(branched.n_cached % 64, 0);
    let fresh = run(&support::worker(), &other, |_| {});
    assert_eq!(branched.tokens, fresh.tokens);
}

#[test]
fn what_was_answered_is_found_by_its_text() {
    let worker = worker();
    for seed in 0..8 {
        let prompt = format!("{seed}: {TEXT}");
        let wild = |job: &mut Job| {
            job.sampling = SamplerOptions::new().temperature(1.0).seed(seed);
            job.max_new_tokens = Some(200);
        };
        let first = run(&worker, &prompt, wild);
        let sent_back = format!("{prompt}{}\n\nAnd then?", first.text);
        let second = run(&worker, &sent_back, |_| {});
        let n_new = second.n_prompt - second.n_cached;
        assert!(n_new <= 8, "seed {seed}: {n_new} tokens were read again");
        assert!(second.n_cached >= first.n_prompt + first.tokens.len() - 3);
    }
}

/// The token of these bytes.
fn token_of(worker: &Worker, bytes: &[u8]) -> u32 {
    let tokenizer = worker.model().tokenizer().expect("a tokenizer");
    let ids = 0..tokenizer.n_tokens() as u32;
    let mut ids = ids.filter(|&id| tokenizer.token_bytes(id).as_deref() == Some(bytes));
    ids.next().expect("a token of these bytes")
}

/// Ends within a word, whose letters would make other tokens now; and bytes that are no characters, which clients get as
/// U+FFFD and send back so.
#[test]
fn an_answer_is_found_however_it_ends_and_whatever_its_bytes_are() {
    let folder = tempfile::tempdir().expect("a folder");
    for (bytes, text) in [(&b"e"[..], "e"), (b"\x80", "\u{fffd}")] {
        let worker = in_folder(folder.path());
        let token = token_of(&worker, bytes);
        let first = run(&worker, TEXT, |job| job.bias = vec![(token, 100.0)]);
        assert_eq!(
            (first.text, first.tokens),
            (text.repeat(12), vec![token; 12])
        );
        let sent_back = format!("{TEXT}{}\n\nAnd then?", text.repeat(12));
        let tokenizer = worker.model().tokenizer().expect("a tokenizer");
        let n_canonical = tokenizer.encode(&sent_back).expect("tokens").len();
        let n_known = first.n_prompt + 11;
        let second = run(&worker, &sent_back, |_| {});
        assert_eq!(second.n_cached, n_known, "{text}: of {n_canonical}");
        // What was drawn next stands in the name of the file.
        drop(worker);
        let second = run(&in_folder(folder.path()), &sent_back, |_| {});
        assert!(second.n_cached >= n_known, "{text}: of {n_canonical}");
        // A word that a client has written the rest of is not read in two halves.
        let other = format!("{TEXT}{}f", text.repeat(12));
        let found = run(&in_folder(folder.path()), &other, |_| {});
        if text == "e" {
            assert!(found.n_cached < first.n_prompt, "{found:?}");
        }
    }
}

#[test]
fn a_stop_text_is_no_part_of_what_is_found() {
    let worker = worker();
    // Whatever the model says first ends the answer, once as a whole token, once in the middle of one.
    let whole = run(&worker, TEXT, |job| job.max_new_tokens = Some(40));
    let words: Vec<&str> = whole.text.split(' ').filter(|w| w.len() > 3).collect();
    for (stop, at) in [(words[1], 0), (&words[2][1..3], 1)] {
        let stop = stop.to_owned();
        let stopped = run(&worker, &format!("{at} {TEXT}"), |job| {
            job.max_new_tokens = Some(40);
            job.stops = vec![stop.clone()];
        });
        let sent_back = format!("{at} {TEXT}{}.\n\nQ:", stopped.text);
        let second = run(&worker, &sent_back, |_| {});
        let fed = stopped.n_prompt + stopped.tokens.len();
        assert!(
            second.n_cached + 8 >= fed.min(second.n_prompt),
            "{stopped:?} {second:?}"
        );
    }
}

#[test]
fn a_thought_is_not_gone_on_from() {
    let worker = worker();
    let thinking = |job: &mut Job| {
        job.max_new_tokens = Some(30);
        job.remains = Some(Box::new(|_| Some(" Yes.".into())));
    };
    let first = run(&worker, TEXT, thinking);
    let second = run(&worker, &format!("{TEXT} Yes.\n\nWhy?"), |_| {});
    assert_eq!(second.n_cached, first.n_prompt - 1);
    let fresh = run(&support::worker(), &format!("{TEXT} Yes.\n\nWhy?"), |_| {});
    assert_eq!(second.tokens, fresh.tokens);
}

/// Small models often see the blank line behind a question as the end of everything.
#[test]
fn an_answer_of_a_conversation_begins_with_a_word() {
    let worker = worker();
    let asked = |begins_with_word: bool| {
        let mut texts = Vec::new();
        for prompt in [TEXT, "What is a trait?", "A lifetime is", "Why?"] {
            let answer = run(&worker, prompt, |job| {
                job.begins_with_word = begins_with_word;
                job.ignore_end_of_text = false;
                job.stops = vec!["\n\n".into()];
            });
            texts.push(answer.text);
        }
        texts.into_iter().filter(|text| text.trim().is_empty())
    };
    assert!(asked(false).count() > 0);
    assert_eq!(asked(true).count(), 0);
}

fn in_session(name: &str) -> impl Fn(&mut Job) + '_ {
    move |job| {
        job.start = Start::Session {
            name: name.into(),
            first: Some(0),
        };
    }
}

#[test]
fn a_session_goes_on_where_it_was() {
    let worker = worker();
    let owner = Owner::new("");
    let first = run(&worker, TEXT, in_session("a"));
    let info = worker.session(&owner, "a").expect("readable").expect("one");
    assert_eq!(info.n_tokens as usize, first.n_prompt + first.tokens.len());
    worker.fork_session(&owner, "a", "b").expect("forked");
    let second = run(&worker, "\n\nAnd then?", in_session("a"));
    assert!(second.n_prompt < 12, "only what is new: {second:?}");
    // The same by all texts, in another worker that has nothing.
    let all = format!("{TEXT}{}\n\nAnd then?", first.text);
    let other = support::worker();
    run(&other, TEXT, |_| {});
    let fresh = run(&other, &all, |_| {});
    assert_eq!(second.tokens, fresh.tokens);
    // Its copy is where it was.
    let third = run(&worker, "\n\nAnd then?", in_session("b"));
    assert_eq!(third.tokens, second.tokens);
    let names = worker.sessions(&owner).expect("readable");
    let names: Vec<_> = names.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    // Another machine goes on with it.
    let bytes = worker
        .export_session(&owner, "b")
        .expect("readable")
        .expect("one");
    other
        .import_session(&owner, "moved", &bytes)
        .expect("imported");
    let here = run(&worker, " So", in_session("b"));
    let there = run(&other, " So", in_session("moved"));
    assert_eq!(here.tokens, there.tokens);
    for damaged in [&bytes[..20], &bytes[..bytes.len() - 3], &[7; 99][..]] {
        assert!(other.import_session(&owner, "bad", damaged).is_err());
    }
    assert!(worker.delete_session(&owner, "b").expect("removed"));
    assert!(!worker
        .delete_session(&owner, "b")
        .expect("nothing to remove"));
    assert!(worker.fork_session(&owner, "b", "c").is_err());
    assert!(worker.fork_session(&owner, "a", "a").is_err());
}

#[test]
fn owners_find_nothing_of_each_other() {
    let worker = worker();
    run(&worker, TEXT, in_session("mine"));
    let of_other = |job: &mut Job| job.owner = Owner::new("other");
    assert_eq!(run(&worker, TEXT, of_other).n_cached, 0);
    assert_eq!(
        worker
            .session(&Owner::new("other"), "mine")
            .expect("readable"),
        None
    );
}

#[test]
fn several_choices_share_their_prompt() {
    let worker = worker();
    let (job, events) = job(TEXT, |job| {
        job.n_choices = 3;
        job.sampling = SamplerOptions::new().temperature(1.0).seed(5);
    });
    worker.submit(job);
    let answers = wait(events).expect("answers");
    assert_eq!(answers.len(), 3);
    for (i, answer) in answers.iter().enumerate() {
        let alone = run(&worker, TEXT, |job| {
            job.sampling = SamplerOptions::new().temperature(1.0).seed(5 + i as u64);
        });
        assert_eq!(answer.tokens, alone.tokens);
    }
}

#[test]
fn logprobs_of_prompt_and_answer_agree() {
    let worker = worker();
    let asked = |job: &mut Job| job.top_logprobs = Some(3);
    let first = {
        let (job, mut events) = job(TEXT, asked);
        worker.submit(job);
        let mut chosen = Vec::new();
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Token { chosen: one, .. } => chosen.push(one),
                Event::Done => break,
                _ => {}
            }
        }
        chosen
    };
    // Greedy: the likeliest is the chosen one.
    for one in &first {
        assert_eq!(one.top.len(), 3);
        assert_eq!(one.top[0], (one.token, one.logprob.expect("asked for")));
    }
    let ids = worker
        .model()
        .tokenizer()
        .expect("one")
        .encode(TEXT)
        .expect("text");
    let mut all = vec![0];
    all.extend(&ids);
    all.extend(first.iter().map(|one| one.token));
    let echoed = run(&worker, "", |job| {
        job.start = Start::Beginning;
        job.prompt = Prompt::Tokens(all.clone());
        job.prompt_logprobs = true;
        job.top_logprobs = Some(3);
        job.max_new_tokens = Some(0);
    });
    assert_eq!(
        (echoed.tokens.len(), echoed.ending),
        (0, Some(Ending::Length))
    );
    let tokens: Vec<u32> = echoed.prompt.iter().map(|one| one.token).collect();
    assert_eq!(tokens, all);
    assert_eq!(echoed.prompt[0].logprob, None);
    assert_eq!(&echoed.prompt[1 + ids.len()..], &first[..]);
}

#[test]
fn who_has_gone_is_in_no_further_step() {
    let worker = worker();
    let long = TEXT.repeat(40);
    let (reading, events) = job(&long, |job| job.max_new_tokens = None);
    worker.submit(reading);
    let (drawing, mut tokens) = job("Ownership", |job| job.max_new_tokens = None);
    worker.submit(drawing);
    while !matches!(tokens.blocking_recv(), Some(Event::Token { .. })) {}
    drop((events, tokens));
    for _ in 0..200 {
        if worker.metrics().sequences_running.get() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it still runs");
}

#[test]
fn more_jobs_than_places_wait() {
    let worker = worker_with(|options| options.n_sequences = 2);
    let receivers: Vec<_> = (0..7)
        .map(|i| {
            let (job, events) = job(&format!("{i} {TEXT}"), |_| {});
            worker.submit(job);
            events
        })
        .collect();
    for events in receivers {
        assert_eq!(wait(events).expect("an answer")[0].tokens.len(), 12);
        assert!(worker.metrics().sequences_running.get() <= 2);
    }
}

#[test]
fn memory_for_states_is_bounded() {
    let size = model().new_state().size_bytes() as u64;
    let max = 9 * (size + 512);
    let worker = worker_with(|options| options.state_memory = max);
    for i in 0..6 {
        run(&worker, &format!("{i} {}", TEXT.repeat(2)), |_| {});
        let kept = worker.store().in_memory();
        assert!(kept.n_bytes <= max && kept.n_states > 0, "{kept:?}");
    }
    // The last ones are there.
    let again = run(&worker, &format!("5 {}", TEXT.repeat(2)), |_| {});
    assert_eq!(again.n_cached, again.n_prompt - 1);
    assert_eq!(
        run(&worker, &format!("0 {}", TEXT.repeat(2)), |_| {}).n_cached,
        0
    );
}

#[test]
fn a_folder_outlives_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("states");
    let (first, second) = {
        let worker = in_folder(&folder);
        let first = run(&worker, TEXT, |_| {});
        run(&worker, TEXT, in_session("a"));
        (first, run(&worker, "\n\nAnd", in_session("a")))
    };
    let restarted = in_folder(&folder);
    let sent_back = format!("{TEXT}{}\n\nAnd", first.text);
    let again = run(&restarted, &sent_back, |_| {});
    assert!(again.n_prompt - again.n_cached <= 8, "{again:?}");
    assert_eq!(again.tokens, second.tokens);
    let more = run(&restarted, " so", in_session("a"));
    assert!(more.n_prompt < 8);
    // What is torn is not used, and not fatal.
    let files = |ending: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&folder).expect("readable");
        let paths = entries.map(|entry| entry.expect("readable").path());
        paths
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .collect()
    };
    for path in files(".state") {
        let bytes = std::fs::read(&path).expect("readable");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    }
    drop(restarted);
    let torn = in_folder(&folder);
    assert_eq!(run(&torn, &sent_back, |_| {}).tokens, again.tokens);
    let error = fails(&torn, " so", in_session("a"));
    assert!(error.contains("no longer there"), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for path in files("") {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

#[test]
fn servers_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (in_folder(folder.path()), in_folder(folder.path()));
    let first = run(&one, TEXT, |_| {});
    let second = run(&other, &format!("{TEXT}{} And", first.text), |_| {});
    assert!(second.n_cached >= first.n_prompt, "{second:?}");
    // What one has removed the other misses, and no more.
    for entry in std::fs::read_dir(folder.path()).expect("readable") {
        std::fs::remove_file(entry.expect("readable").path()).expect("removed");
    }
    let third = in_folder(folder.path());
    drop(one);
    assert_eq!(run(&third, TEXT, |_| {}).n_cached, 0);
}

#[test]
fn a_small_folder_keeps_the_last_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let size = model().new_state().size_bytes() as u64;
    let worker = worker_with(|options| {
        options.state_memory = 0;
        options.disk = Some(DiskOptions {
            folder: folder.path().into(),
            n_bytes_max: 6 * (size + 4096),
        });
    });
    for i in 0..5 {
        run(&worker, &format!("{i} Ownership is"), |_| {});
    }
    worker.store().flush();
    let kept = worker.store().on_disk();
    assert!(
        kept.n_bytes <= 6 * (size + 4096) && kept.n_states >= 4,
        "{kept:?}"
    );
    let states = std::fs::read_dir(folder.path()).expect("readable").count() as u64;
    assert_eq!(states, kept.n_states);
    let again = run(&worker, "4 Ownership is", |_| {});
    assert_eq!(again.n_cached, again.n_prompt - 1);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let worker = worker();
    let n_vocab = worker.model().n_vocab() as u32;
    let error = fails(&worker, "", |job| {
        job.prompt = Prompt::Tokens(vec![1, n_vocab])
    });
    assert!(error.contains(&format!("below {n_vocab}")), "{error}");
    let error = fails(&worker, "", |job| job.start = Start::Beginning);
    assert!(error.contains("empty prompt"), "{error}");
    let error = fails(&worker, "x", |job| job.stops = vec![String::new()]);
    assert!(error.contains("empty"), "{error}");
    // And nothing is left of it.
    run(&worker, TEXT, |_| {});
}

#[test]
fn a_session_is_worked_on_once() {
    let worker = worker();
    let (first, events) = job(TEXT, |job| {
        in_session("a")(job);
        job.max_new_tokens = None;
    });
    worker.submit(first);
    let mut events = events;
    while !matches!(events.blocking_recv(), Some(Event::Token { .. })) {}
    let error = fails(&worker, "x", in_session("a"));
    assert!(error.contains("one at a time"), "{error}");
    assert!(worker.delete_session(&Owner::new(""), "a").is_err());
    drop(events);
}

/// As somebody types, and a model completes each beginning by a token.
#[test]
fn a_word_is_not_read_in_two_halves() {
    let worker = worker();
    let typed = "Ownership is the most distinctive feature";
    for end in 1..=typed.len() {
        run(&worker, &typed[..end], |job| job.max_new_tokens = Some(1));
    }
    let found = run(&worker, typed, |_| {});
    let fresh = run(&support::worker(), typed, |_| {});
    assert_eq!(
        (found.n_prompt, found.tokens),
        (fresh.n_prompt, fresh.tokens)
    );
}

#[test]
fn tokens_without_a_text_are_no_part_of_one() {
    let worker = worker();
    let end = worker.model().end_of_text();
    let ended = run(&worker, TEXT, |job| {
        job.bias = vec![(end, 100.0)];
        job.max_new_tokens = Some(4);
    });
    assert_eq!((&*ended.tokens, &*ended.text), (&[end; 4][..], ""));
    let next = format!("{TEXT} What");
    let found = run(&worker, &next, |_| {});
    let fresh = run(&support::worker(), &next, |_| {});
    assert_eq!(
        (found.n_prompt, found.tokens),
        (fresh.n_prompt, fresh.tokens)
    );
}

#[test]
fn a_session_may_begin_with_one_token() {
    let worker = worker();
    let first = run(&worker, "", |job| {
        in_session("a")(job);
        job.prompt = Prompt::Tokens(Vec::new());
        job.remains = Some(Box::new(|_| Some(" So".into())));
    });
    assert_eq!(first.n_prompt, 1);
    let bytes = worker
        .export_session(&Owner::new(""), "a")
        .expect("readable");
    assert!(bytes.is_some());
    assert!(run(&worker, " then", in_session("a")).n_prompt > 1);
}

#[test]
fn a_session_that_cannot_be_kept_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("states");
    let worker = in_folder(&path);
    run(&worker, TEXT, in_session("a"));
    std::fs::remove_dir_all(&path).expect("removed");
    let error = fails(&worker, " And", in_session("a"));
    assert!(error.contains("states"), "{error}");
    // Other answers are as they should be; only the log says that they are not kept.
    let (job, mut events) = job(TEXT, |_| {});
    worker.submit(job);
    let mut warned = false;
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::NotWritten(_) => warned = true,
            Event::Done => break,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert!(warned);
    // A file is no folder.
    std::fs::write(&path, "no folder").expect("written");
    let mut options = WorkerOptions::default();
    options.disk = Some(DiskOptions {
        folder: path,
        n_bytes_max: 1 << 30,
    });
    assert!(Worker::start(model(), &options).is_err());
}

#[test]
fn who_waits_for_room_does_not_hold_up_the_end() {
    let worker = worker_with(|options| options.n_sequences = 1);
    let (endless, mut events) = job(TEXT, |job| job.max_new_tokens = None);
    worker.submit(endless);
    while !matches!(events.blocking_recv(), Some(Event::Token { .. })) {}
    let (waiting, its_events) = job(TEXT, |_| {});
    worker.submit(waiting);
    drop(worker);
    assert!(wait(its_events).is_err());
    assert!(wait(events).is_err());
}
