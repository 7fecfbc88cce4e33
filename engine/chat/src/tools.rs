//! Tools in the form that the G1 models were trained on: a list of functions in the system text, calls as
//! JSON, and what came of them in the user's next message.
//!
//! Nothing is called here: these are texts, which a program puts around its own calls.
//!
//! ```
//! use rwkv_edge_chat::{tools, Template};
//!
//! let world: Template = "world".parse()?;
//! let system = world.system(&tools::system_text(["weather(city)", "time(zone)"]));
//! let prompt = world.turn("Is it raining in Oslo?") + tools::CALL_BEGINS;
//! assert!(system.starts_with("System: Tools:\n- weather(city)\n- time(zone)\nReturn only"));
//! assert!(prompt.ends_with("\n\nAssistant: ```json"));
//! # Ok::<(), rwkv_edge::Error>(())
//! ```

/// What stands behind [`Template::turn`](crate::Template::turn) where the answer is to be a call; three
/// backquotes end it.
pub const CALL_BEGINS: &str = " ```json";

/// The system text for functions, each given as `name(args)`.
pub fn system_text<'a>(functions: impl IntoIterator<Item = &'a str>) -> String {
    let lines = functions.into_iter().map(|one| format!("- {one}\n"));
    let lines: String = lines.collect();
    format!("Tools:\n{lines}Return only a JSON function call.")
}

/// The message that tells the model what came of a call, as JSON.
pub fn output_message(json: &str) -> String {
    format!("Function output:\n{json}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Template;

    #[test]
    fn tools_are_written_as_the_models_know_them() {
        let world: Template = "g1".parse().expect("a template");
        assert_eq!(
            world.system(&system_text(["add(a, b)"])),
            "System: Tools:\n- add(a, b)\nReturn only a JSON function call.\n\n"
        );
        assert_eq!(
            world.turn(&output_message("{\"sum\": 3}")),
            "User: Function output:\n{\"sum\": 3}\n\nAssistant:"
        );
    }
}
