"""Anthropic's own package, as its users write."""

import os
import tempfile
import unittest

import anthropic

from server import Server

TEXT = "Ownership is the most distinctive feature of Rust, and it has deep implications."


class Messages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.keys = tempfile.NamedTemporaryFile("w")
        cls.keys.write("ann secret-of-ann\n")
        cls.keys.flush()
        cls.server = Server("--api-key-file", cls.keys.name)
        cls.client = anthropic.Anthropic(base_url=cls.server.url, api_key="secret-of-ann", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()
        cls.keys.close()

    def options(self, text=TEXT, **more):
        messages = [{"role": "user", "content": text}]
        # The package does not know of temperatures any more; the server does.
        body = {"temperature": 0, **more.pop("extra_body", {})}
        return {"model": "demo", "max_tokens": 12, "messages": messages, "extra_body": body, **more}

    def ask(self, *args, **more):
        return self.client.messages.create(**self.options(*args, **more))

    def test_an_answer(self):
        answer = self.ask(system="Be brief.")
        self.assertEqual((answer.type, answer.role, answer.model), ("message", "assistant", "demo"))
        self.assertEqual([block.type for block in answer.content], ["text"])
        self.assertIn(answer.stop_reason, ("end_turn", "max_tokens"))
        self.assertEqual(answer.usage.output_tokens > 0, True)
        self.assertTrue(answer.id.startswith("msg_"))
        self.assertTrue(answer._request_id.startswith("req_"))

    def test_it_is_the_answer_that_openais_clients_get(self):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
        _, _, other = self.server.request(
            "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0},
            {"Authorization": "Bearer secret-of-ann"})
        answer = self.ask(system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}])
        self.assertEqual(answer.content[0].text, other["choices"][0]["message"]["content"])
        self.assertEqual(answer.stop_reason == "max_tokens", other["choices"][0]["finish_reason"] == "length")

    def test_a_stream_is_the_same(self):
        whole = self.ask(max_tokens=30)
        with self.client.messages.stream(**self.options(max_tokens=30)) as stream:
            kinds, pieces = [], []
            for event in stream:
                kinds.append(event.type)
                if event.type == "text":
                    pieces.append(event.text)
            final = stream.get_final_message()
        self.assertEqual(final.content[0].text, whole.content[0].text)
        self.assertEqual("".join(pieces), whole.content[0].text)
        self.assertEqual((final.stop_reason, final.stop_sequence), (whole.stop_reason, whole.stop_sequence))
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertEqual((kinds[0], kinds[-1]), ("message_start", "message_stop"))
        raw = list(self.client.messages.create(**self.options(max_tokens=30), stream=True))
        kinds = [event.type for event in raw if event.type != "ping"]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])

    def test_what_is_known_is_not_read_again(self):
        text = f"{TEXT} " * 5
        first = self.ask(text)
        messages = [{"role": "user", "content": text},
                    {"role": "assistant", "content": [block.model_dump() for block in first.content]},
                    {"role": "user", "content": "And then?"}]
        usage = self.ask(messages=messages).usage
        self.assertGreater(usage.cache_read_input_tokens, 50)
        self.assertLess(usage.input_tokens, 24)

    def test_stop_sequences(self):
        whole = self.ask(max_tokens=40).content[0].text
        word = whole.split()[3]
        answer = self.ask(max_tokens=40, stop_sequences=["never said", word])
        self.assertEqual((answer.stop_reason, answer.stop_sequence), ("stop_sequence", word))
        self.assertEqual(answer.content[0].text.strip(), whole[:whole.index(word)].strip())

    def test_thoughts_are_blocks_of_their_own(self):
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 60}
        with Server("--template", "world") as server:
            client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
            answer = client.messages.create(**self.options(**thinking))
            self.assertEqual(answer.content[0].type, "thinking")
            self.assertTrue(answer.content[0].thinking.strip())
            with client.messages.stream(**self.options(**thinking)) as stream:
                streamed = stream.get_final_message()
            self.assertEqual(streamed.content[0].thinking, answer.content[0].thinking)
            # They may come back with the next question.
            history = [{"role": "user", "content": TEXT},
                       {"role": "assistant", "content": [answer.content[0].model_dump(),
                                                         {"type": "text", "text": "So it is."}]},
                       {"role": "user", "content": "And then?"}]
            again = client.messages.create(**self.options(messages=history, **thinking))
            self.assertEqual(again.content[0].type, "thinking")

    def test_tokens_are_counted(self):
        counted = self.client.messages.count_tokens(model="demo", messages=self.options()["messages"])
        usage = self.ask("Another one, which nobody has asked.", max_tokens=1).usage
        other = self.client.messages.count_tokens(
            model="demo", messages=[{"role": "user", "content": "Another one, which nobody has asked."}])
        self.assertEqual(other.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)
        self.assertGreater(counted.input_tokens, 10)

    def test_errors_are_in_their_own_form(self):
        for kind, options in [
            (anthropic.BadRequestError, {"extra_body": {"temperature": 7}}),
            (anthropic.BadRequestError, {"tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
            (anthropic.BadRequestError, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "A"},
                                                      {"role": "assistant", "content": "B"}]}),
            (anthropic.BadRequestError, {"max_tokens": 0}),
            (anthropic.NotFoundError, {"model": "no-such-model"}),
        ]:
            with self.subTest(options=options), self.assertRaises(kind) as caught:
                self.ask(**options)
            self.assertEqual(caught.exception.body["type"], "error")
            self.assertTrue(caught.exception.body["error"]["message"])
        status, _, answer = self.server.request(
            "POST", "/v1/messages", {"messages": self.options()["messages"]}, {"x-api-key": "secret-of-ann"})
        self.assertEqual((status, answer["error"]["type"]), (400, "invalid_request_error"))
        self.assertIn("max_tokens", answer["error"]["message"])
        stranger = anthropic.Anthropic(base_url=self.server.url, api_key="wrong", max_retries=0)
        with self.assertRaises(anthropic.AuthenticationError) as caught:
            stranger.messages.create(**self.options())
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.batches.list()

    def test_sessions_go_on(self):
        session = f"anthropic-{os.getpid()}"
        self.ask(f"{TEXT} " * 5, extra_body={"session": session})
        usage = self.ask("And then?", extra_body={"session": session}).usage
        self.assertLess(usage.input_tokens + usage.cache_read_input_tokens, 24)


if __name__ == "__main__":
    unittest.main()
