//! The chat template that came with a model, wherever it lies.

use crate::*;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}\
                        {% if add_generation_prompt %}\nassistant:\n{%- endif %}";

/// As those of models that think: a strict order of roles, and `enable_thinking`.
const THINKING: &str = "{% if messages[-1].role != 'user' %}{{ raise_exception('no user') }}{% endif %}\
                        {% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:\
                        {% if enable_thinking is defined and enable_thinking %} <think{% endif %}{% endif %}";

/// A folder with a model that thinks, without a template.
fn folder(chat: &Chat) -> PathBuf {
    let folder = chat.folder.path().join("model");
    fs::create_dir(&folder).unwrap();
    tiny::write_thinker(&folder);
    folder
}

fn run(chat: &Chat, model: &Path, more: &[&str], input: &str) -> Output {
    let args = ["--model", model.to_str().unwrap(), "--template", "model"];
    chat.run(&[&args[..], more].concat(), input)
}

/// That of a directory; what is wrong with it is told before anything is said.
#[test]
fn a_directory_may_bring_one() {
    let chat = Chat::new();
    let folder = folder(&chat);
    let run = |input: &str| run(&chat, &folder, &[], input);
    let found = run("Hi\n");
    assert_eq!(found.status.code(), Some(1));
    assert!(stderr(&found).contains("model: no chat template: looked for"));
    let write = |text: &str| fs::write(folder.join("chat_template.jinja"), text).unwrap();
    write(TEMPLATE);
    let found = run("Hi\nHi\n/show\n/stats\n");
    assert_eq!(stdout(&found), "Yes\n\nNo\nYes\n\nNo\n");
    assert!(
        stderr(&found).contains("template model"),
        "{}",
        stderr(&found)
    );
    let args = ["--template", "model", "--cache-prompt", "--system", "x"];
    let found = chat.run(
        &[&["--model", folder.to_str().unwrap()], &args[..]].concat(),
        "",
    );
    assert!(stderr(&found).contains("--cache-prompt changes nothing here"));
    write("\n\n{{ raise_exception('no users') }}");
    let found = run("Hi\n");
    assert_eq!(found.status.code(), Some(1));
    let said = stderr(&found);
    assert!(
        said.contains("chat_template.jinja: chat template: line 3: no users"),
        "{said}"
    );
    #[cfg(unix)]
    {
        fs::remove_file(folder.join("chat_template.jinja")).unwrap();
        std::os::unix::fs::symlink("gone", folder.join("chat_template.jinja")).unwrap();
        let said = stderr(&run("Hi\n"));
        assert!(said.contains("a link to nothing"), "{said}");
    }
}

/// Beside a lone file, and in a model file that was made of it.
#[test]
fn it_lies_beside_a_file_and_travels_in_a_model_file() {
    let chat = Chat::new();
    let folder = folder(&chat);
    let model = folder.join("model.safetensors");
    let config = serde_json::json!({ "chat_template": TEMPLATE, "bos_token": "<s>" });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    let quantize = |to: &Path| {
        let mut command = command();
        command.args(["quantize", "--json", "--model", model.to_str().unwrap()]);
        command.args(["--output", to.to_str().unwrap()]);
        command.output().unwrap()
    };
    let file = chat.path("model.rwkv");
    let written: Value = serde_json::from_str(&stdout(&quantize(&file))).unwrap();
    let place = written["chat_template"].as_str().unwrap();
    assert!(place.ends_with("tokenizer_config.json"), "{place}");
    for model in [&model, &file] {
        let found = run(&chat, model, &[], "Hi\nHi\n");
        assert_eq!(stdout(&found), "Yes\n\nNo\nYes\n\nNo\n");
    }
    // What is in the file counts, not what lies beside it.
    fs::write(chat.path("chat_template.jinja"), "{{ nothing.at.all }}").unwrap();
    assert_eq!(stdout(&run(&chat, &file, &[], "Hi\n")), "Yes\n\nNo\n");
    fs::remove_file(chat.path("chat_template.jinja")).unwrap();

    // One that cannot be read is left out, which is told.
    fs::write(folder.join("tokenizer_config.json"), "{").unwrap();
    let found = quantize(&file);
    assert_eq!(found.status.code(), Some(0));
    let said = stderr(&found);
    assert!(
        said.contains("tokenizer_config.json: ") && said.contains("without a chat template"),
        "{said}"
    );
    let found = run(&chat, &file, &[], "Hi\n");
    assert_eq!(found.status.code(), Some(1));
    assert!(stderr(&found).contains("model.rwkv: no chat template"));
}

#[test]
fn thoughts_are_asked_for_where_the_template_knows_them() {
    let chat = Chat::new();
    let folder = folder(&chat);
    let write = |text: &str| fs::write(folder.join("chat_template.jinja"), text).unwrap();
    write(THINKING);
    let found = run(&chat, &folder, &["--think", "on", "--json"], "Hi\nHi\n");
    for line in stdout(&found).lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&object["thought"], &object["text"]),
            (&"Ab\n\nc".into(), &"Yes\n\nNo".into())
        );
    }
    assert_eq!(stdout(&found).lines().count(), 2);
    let found = run(&chat, &folder, &["--think", "long"], "Hi\n");
    assert_eq!(found.status.code(), Some(1));
    assert!(stderr(&found).contains("expected on, fake or off"));
    write(TEMPLATE);
    let found = run(&chat, &folder, &["--think", "on"], "Hi\n");
    assert_eq!(found.status.code(), Some(1));
    let said = stderr(&found);
    assert!(
        said.contains("the model's own template has no thoughts to ask for"),
        "{said}"
    );
}
