"""Conversations: against the command, whose templates they are written in, whole and piece by piece."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import rwkv_edge
from common import DEMO, TestCase, demo, golden, run_command

QUESTION = "What is a trait?"
USER = [{"role": "user", "content": QUESTION}]
TURNS = [
    {"role": "system", "content": "Answers about Rust."},
    *USER,
    {"role": "assistant", "content": "A trait is shared behaviour."},
    {"role": "user", "content": "And a type?"},
]


def by_command(lines: str, *arguments) -> list[dict]:
    done = run_command("chat", "-m", DEMO, "--quant", "int8", "--json", "-n", "24", *arguments, input=lines + "\n")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Chat(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def chat(self, messages=USER, **options):
        return self.model.chat(messages, **{"max_new_tokens": 24, **options})

    def test_the_command_gives_the_same(self):
        drawn = {"temperature": 1.0, "top_p": 0.8, "seed": 7}
        cases = [{}, {"template": "qa"}, {"template": "Ann/Robot", **drawn}, {"template": "instruct"}, {"stop": "type"}]
        cases += [{"template": "world", "think": think} for think in ["off", "on", "fake", "short", "long"]]
        for options in cases:
            with self.subTest(options):
                arguments = [
                    item for name, value in options.items() for item in ("--" + name.replace("_", "-"), str(value))
                ]
                (wanted,) = by_command(QUESTION, *arguments)
                found = self.chat(**options)
                self.assertEqual(found.text.strip(), wanted["text"])
                self.assertEqual((found.thought or "").strip(), wanted.get("thought") or "")
                self.assertEqual(found.finish_reason, wanted["ending"])

    def test_turns_are_what_the_command_reads(self):
        arguments = ["--template", "world", "--system", TURNS[0]["content"]]
        wanted = by_command("\n".join([QUESTION, "And a type?"]), *arguments)
        turns = [dict(turn) for turn in TURNS]
        turns[2]["content"] = wanted[0]["text"]
        self.assertEqual(self.chat(turns, template="world").text.strip(), wanted[1]["text"])

    def test_what_is_read(self):
        by_hand = "System: Answers about Rust.\n\nUser: What is a trait?\n\nAssistant: A trait is shared behaviour.\n\n"
        by_hand += "User: And a type?\n\nAssistant:"
        for options in [{}, {"bos": True}]:
            state = self.model.new_state()
            self.model.chat(TURNS, template="world", max_new_tokens=0, state=state, **options)
            tokens = [0] * len(options) + self.model.tokenizer.encode(by_hand)
            np.testing.assert_array_equal(state.to_numpy(), self.model.forward(tokens)[1].to_numpy())

    def test_a_list_gives_what_single_conversations_do(self):
        conversations = [TURNS, USER, TURNS[1:]] * 20
        found = self.chat(conversations, template="raven")
        single = [self.chat(one, template="raven") for one in conversations[:3]]
        self.assertEqual([one.text for one in found], [one.text for one in single * 20])
        (one,) = self.chat([USER], temperature=1.0, seed=3)
        self.assertEqual(one.tokens, self.chat(temperature=1.0, seed=3).tokens)

    def test_pieces_are_the_whole(self):
        for options in [{}, {"template": "world", "think": "on"}, {"template": "qa", "temperature": 1.2, "seed": 5}]:
            with self.subTest(options):
                whole = self.chat(**options)
                stream = self.model.chat_stream(USER, max_new_tokens=24, **options)
                self.assertEqual("".join(stream), whole.text)
                self.assertEqual((stream.tokens, stream.thought), (whole.tokens, whole.thought))
                self.assertEqual(stream.finish_reason, whole.finish_reason)

    def test_a_state_goes_on_with_the_conversation(self):
        state = self.model.new_state()
        first = self.chat(template="qa", state=state)
        self.assertEqual(first.finish_reason, "stop")
        more = self.chat([{"role": "user", "content": "And a type?"}], template="qa", state=state)
        all_turns = [*USER, {"role": "assistant", "content": first.text}, TURNS[3]]
        self.assertEqual(more.text, self.chat(all_turns, template="qa").text)

    def test_the_models_own_template(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(DEMO, folder, dirs_exist_ok=True)
            template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ 'Q' * 3 }}"
            (Path(folder) / "chat_template.jinja").write_text(template)
            model = rwkv_edge.Model(folder, "int8", threads=2)
            state = model.new_state()
            model.chat(TURNS[:2], template="model", max_new_tokens=0, state=state)
            tokens = model.tokenizer.encode("<system>Answers about Rust.\n<user>What is a trait?\nQQQ")
            np.testing.assert_array_equal(state.to_numpy(), model.forward(tokens)[1].to_numpy())
            # It is asked for, as with the command.
            self.assertEqual(model.chat(USER, max_new_tokens=8).text, self.chat(max_new_tokens=8).text)
        self.assert_error("argument", "no chat template", self.chat, template="model")

    def test_messages_as_clients_hold_them(self):
        wanted = self.chat(TURNS).text
        parts = [{"type": "text", "text": "Answers about"}, {"type": "text", "text": "Rust."}]
        in_parts = [{"role": "developer", "content": parts, "name": "x"}, *TURNS[1:]]
        one_text = [{"role": "system", "content": "Answers about\nRust."}, *TURNS[1:]]
        self.assertEqual(self.chat(in_parts).text, self.chat(one_text).text)
        self.assertEqual(self.chat(tuple(TURNS)).text, wanted)

    def test_what_makes_no_sense(self):
        chat = self.model.chat
        self.assert_error("argument", "none", chat, [])
        self.assert_error("argument", "messages[0]: none", chat, [[]])
        self.assert_error("argument", "role \"robot\"", chat, [{"role": "robot", "content": "x"}])
        self.assert_error("argument", "messages[1]: role", chat, [*USER, {"content": "x"}])
        self.assert_error("argument", "no content", chat, [{"role": "user"}])
        self.assert_error("argument", "think: \"deep\"", chat, USER, think="deep")
        self.assert_error("argument", "has no thoughts", chat, USER, template="raven", think="on")
        self.assert_error("argument", "template: \"x\"", chat, USER, template="x")
        self.assert_error("argument", "state: found 1", chat, [USER, USER], state=self.model.new_state())
        self.assert_error("argument", "expected one", self.model.chat_stream, [USER, USER])
        self.assert_error("tokenizer", "no tokenizer", golden("v7-pth").chat, USER)
        for wrong in ["Hello", USER[0], None, 5, [5], ["Hello"], [[5]], [{"role": "user", "content": 5}]]:
            with self.assertRaises(TypeError, msg=wrong):
                chat(wrong)
        with self.assertRaisesRegex(TypeError, "temprature"):
            chat(USER, temprature=1)
