//! Completions in one piece.

use rwkv_edge_serve::{Ending, Prompt, Start};
use serde_json::{json, Value};

use crate::support::{encode, model, start, start_with, Script};

const PATH: &str = "/v1/completions";

#[test]
fn an_answer_has_openais_form() {
    let server = start(Script::Say(" lies in names. ", Ending::Stop));
    let json = server
        .post(PATH, &json!({"model": "demo", "prompt": "Ownership"}))
        .json();
    assert!(json["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(json["object"], "text_completion");
    let expected = json!([{"index": 0, "text": " lies in names. ", "logprobs": null, "finish_reason": "stop"}]);
    assert_eq!(json["choices"], expected);
    let seen = server.fake.last();
    assert_eq!((seen.max_new_tokens, seen.stops.len()), (Some(16), 0));
    assert_eq!((seen.start, seen.kept), (Start::Beginning, None));
}

#[test]
fn prompts_have_four_forms() {
    let server = start(Script::Say(" x", Ending::Length));
    let texts = |list: &[&str]| {
        list.iter()
            .map(|t| Prompt::Text((*t).into()))
            .collect::<Vec<_>>()
    };
    for (prompt, expected) in [
        (json!("a"), texts(&["a"])),
        (json!(["a", "b"]), texts(&["a", "b"])),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (
            json!([[1, 2], [3]]),
            vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])],
        ),
    ] {
        server.fake.seen.lock().unwrap().clear();
        let json = server.post(PATH, &json!({"prompt": prompt, "n": 2})).json();
        let choices = json["choices"].as_array().unwrap();
        let indices: Vec<u64> = choices
            .iter()
            .map(|one| one["index"].as_u64().unwrap())
            .collect();
        assert_eq!(indices, (0..2 * expected.len() as u64).collect::<Vec<_>>());
        let seen = server.fake.seen.lock().unwrap();
        let found: Vec<Prompt> = seen.iter().map(|one| one.prompt.clone()).collect();
        assert_eq!(found, expected);
    }
    let n_vocab = model().n_vocab();
    for (prompt, param) in [
        (Value::Null, "prompt"),
        (json!([]), "prompt"),
        (json!({}), "prompt"),
        (json!([1, -1]), "prompt[1]"),
        (json!([1, "a"]), "prompt[1]"),
        (json!(["a", 1]), "prompt[1]"),
        (json!([1.5]), "prompt[0]"),
        (json!([n_vocab]), "prompt[0]"),
        (json!([[0], [n_vocab]]), "prompt[1][0]"),
    ] {
        let (status, text, found, _) = server.refused(PATH, &json!({"prompt": prompt}));
        assert_eq!((status, found), (400, json!(param)), "{text}");
    }
    let many = json!({"prompt": vec!["a"; 513]});
    assert_eq!(server.refused(PATH, &many).0, 400);
    let (status, ..) = server.refused(PATH, &json!({"prompt": ["a", "b"], "session": "s"}));
    assert_eq!(status, 400);
}

#[test]
fn nothing_to_read_is_the_beginning_of_a_text() {
    let server = start(Script::Say(" x", Ending::Stop));
    let first = model().end_of_text();
    assert_eq!(server.post(PATH, &json!({"prompt": ""})).status, 200);
    assert_eq!(server.fake.last().start, Start::Token(first));
    let body = json!({"prompt": "", "session": "s"});
    assert_eq!(server.post(PATH, &body).status, 200);
    let session = Start::Session {
        name: "s".into(),
        first: Some(first),
    };
    assert_eq!(server.fake.last().start, session);
}

/// As lm-evaluation-harness asks for the likelihood of a continuation, and cuts it out of the answer.
#[test]
fn prompts_come_back_with_their_likelihood() {
    let server = start(Script::Say(" x y", Ending::Stop));
    let prompt = encode("Ownership is a set of rules");
    for n in [0, 1] {
        let body = json!({
            "model": "demo", "prompt": [prompt], "temperature": 0, "max_tokens": n, "logprobs": 1, "seed": 1234,
            "echo": true,
        });
        let json = server.post(PATH, &body).json();
        let choice = &json["choices"][0];
        let text = if n == 0 { "" } else { " x" };
        assert_eq!(choice["text"], format!("Ownership is a set of rules{text}"));
        let logprobs = &choice["logprobs"];
        let list = |name: &str| logprobs[name].as_array().unwrap().clone();
        let n_tokens = prompt.len() + n;
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), n_tokens, "{name}");
        }
        assert_eq!(
            (&list("token_logprobs")[0], &list("top_logprobs")[0]),
            (&Value::Null, &Value::Null)
        );
        let rest = &list("token_logprobs")[1..];
        assert!(rest.iter().all(|one| *one == json!(-0.5)));
        let tokens = list("tokens");
        let joined: String = tokens.iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(joined, choice["text"].as_str().unwrap());
        let first = tokens[0].as_str().unwrap().chars().count();
        assert_eq!(
            (&list("text_offset")[0], &list("text_offset")[1]),
            (&json!(0), &json!(first))
        );
        let top = list("top_logprobs")[1].as_object().unwrap().clone();
        assert_eq!(top[tokens[1].as_str().unwrap()], -0.5);
        let seen = server.fake.last();
        assert!(seen.prompt_logprobs && seen.top_logprobs == Some(1));
        assert_eq!(seen.max_new_tokens, Some(n));
    }
    // The token that ended the text counts, so that the last one can be cut off.
    server.fake.set(Script::Say("", Ending::Stop));
    let body = json!({"prompt": [prompt], "max_tokens": 1, "logprobs": 1, "echo": true});
    let json = server.post(PATH, &body).json();
    let tokens = json["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), prompt.len() + 1);
}

#[test]
fn echo_alone_reads_nothing_twice() {
    let server = start(Script::Say(" world", Ending::Length));
    let json = server
        .post(PATH, &json!({"prompt": "Hello", "echo": true, "n": 2}))
        .json();
    assert_eq!(json["choices"][1]["text"], "Hello world");
    assert!(!server.fake.last().prompt_logprobs);
    let json = server
        .post(PATH, &json!({"prompt": "Hello", "logprobs": 0}))
        .json();
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(
        logprobs["tokens"].as_array().unwrap().len(),
        encode(" world").len()
    );
    assert_eq!(logprobs["text_offset"][0], 0);
    assert_eq!(server.fake.last().top_logprobs, Some(0));
}

#[test]
fn answers_are_as_long_as_the_server_allows() {
    let server = start_with(Script::Say(" a b c d e f g h", Ending::Length), |config| {
        config.max_tokens = Some(5)
    });
    let (status, text, param, _) = server.refused(PATH, &json!({"prompt": "a", "max_tokens": 6}));
    assert_eq!((status, param), (400, json!("max_tokens")));
    assert_eq!(text, "max_tokens: 6, expected at most 5 on this server");
    assert_eq!(
        server.post(PATH, &json!({"prompt": "a"})).json()["usage"]["completion_tokens"],
        5
    );
    let free = start(Script::Say(" a", Ending::Length));
    let body = json!({"prompt": "a", "max_tokens": 1_000_000_000});
    assert_eq!(free.post(PATH, &body).status, 200);
    assert_eq!(free.fake.last().max_new_tokens, Some(1_000_000_000));
}

/// A character that is several tokens: each has its own bytes, and they all stand where the character begins.
#[test]
fn parts_of_characters_keep_their_likelihood() {
    let server = start(Script::Say("a\u{1f980}b\u{1f9ad}", Ending::Stop));
    let tokenizer = model().tokenizer().unwrap();
    let ids = encode("a\u{1f980}b\u{1f9ad}");
    let bytes: Vec<Vec<u8>> = ids
        .iter()
        .map(|&id| tokenizer.token_bytes(id).unwrap())
        .collect();
    let n_parts = bytes
        .iter()
        .filter(|one| std::str::from_utf8(one).is_err())
        .count();
    assert!(n_parts > 3, "{bytes:x?}");
    let names: Vec<String> = bytes
        .iter()
        .map(|one| match std::str::from_utf8(one) {
            Ok(text) => text.to_owned(),
            Err(_) => one.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
        })
        .collect();
    let marked = |name: &String| match name.starts_with("\\x") {
        true => format!("bytes:{name}"),
        false => name.clone(),
    };
    // Characters of the text in front of each token.
    let whole = bytes.concat();
    let mut offsets = Vec::new();
    let mut n_before = 0;
    for one in &bytes {
        let text = std::str::from_utf8(&whole[..n_before]);
        let text = text.unwrap_or_else(|e| std::str::from_utf8(&whole[..e.valid_up_to()]).unwrap());
        offsets.push(text.chars().count());
        n_before += one.len();
    }
    let body = json!({"prompt": "x", "max_tokens": 100, "logprobs": 3});
    let choice = server.post(PATH, &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], "a\u{1f980}b\u{1f9ad}");
    let logprobs = &choice["logprobs"];
    let expected: Vec<String> = names.iter().map(marked).collect();
    assert_eq!(logprobs["tokens"], json!(expected));
    assert_eq!(logprobs["text_offset"], json!(offsets));
    for (i, top) in logprobs["top_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let top = top.as_object().unwrap();
        assert_eq!((top.len(), &top[&expected[i]]), (3, &json!(-0.5)));
    }
    // The same behind a prompt that comes back, in a stream.
    let body = json!({
        "prompt": [ids], "max_tokens": 100, "logprobs": 1, "echo": true, "stream": true,
    });
    let chunks = server.post(PATH, &body).events();
    let all = |name: &str| -> Vec<Value> {
        let lists = chunks
            .iter()
            .map(|chunk| chunk["choices"][0]["logprobs"][name].clone());
        lists
            .flat_map(|list| list.as_array().unwrap().clone())
            .collect()
    };
    let n_chars = 4;
    let twice: Vec<usize> = offsets
        .iter()
        .copied()
        .chain(offsets.iter().map(|at| at + n_chars))
        .collect();
    let found = all("text_offset");
    assert_eq!(json!(found[..2 * ids.len()]), json!(twice));
    assert_eq!(
        json!(all("tokens")[ids.len()..2 * ids.len()]),
        json!(expected)
    );
    // Chats give the bytes beside the name.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true});
    let json = server.post("/v1/chat/completions", &body).json();
    let content = json["choices"][0]["logprobs"]["content"].clone();
    let found: Vec<(Value, Value)> = content
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["token"].clone(), one["bytes"].clone()))
        .collect();
    let expected: Vec<(Value, Value)> = names
        .iter()
        .zip(&bytes)
        .map(|(name, bytes)| (json!(name), json!(bytes)))
        .collect();
    assert_eq!(found, expected);
}

/// Bytes that are no character are U+FFFD in the text, which is longer than they are.
#[test]
fn bytes_that_are_no_text_move_no_token() {
    let crab = encode("\u{1f980}");
    let prompt: Vec<u32> = [&encode("x")[..], &crab[..1], &encode("y")].concat();
    let server = start(Script::Say("z", Ending::Length));
    let body = json!({"prompt": [prompt], "max_tokens": 1, "logprobs": 0, "echo": true});
    let choice = server.post(PATH, &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], "x\u{fffd}yz");
    let logprobs = &choice["logprobs"];
    let n = logprobs["tokens"].as_array().unwrap().len();
    assert_eq!(n, prompt.len() + 1);
    assert_eq!(logprobs["text_offset"][n - 1], 3);
    assert_eq!(
        logprobs["text_offset"][n - 2],
        1,
        "where its character begins"
    );
}

#[test]
fn no_prompt_has_more_answers_than_are_drawn_at_once() {
    let server = start_with(Script::Say(" a", Ending::Length), |config| {
        config.n_sequences = 3;
    });
    let ask = |n: usize| json!({"prompt": ["a", "b"], "n": n});
    assert_eq!(server.post(PATH, &ask(3)).status, 200);
    let (status, text, param, _) = server.refused(PATH, &ask(4));
    assert_eq!((status, param), (400, json!("n")));
    assert_eq!(text, "n: 4, expected a whole number from 1 to 3");
}
