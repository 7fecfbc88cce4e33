"""The official client, as its users write."""

import base64
import json
import struct
import unittest

import openai
from jsonschema import Draft202012Validator

from server import Server

TEXT = "Ownership is the most distinctive feature of Rust, and it has deep implications."


class WithServer(unittest.TestCase):
    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options)
        cls.client = openai.OpenAI(base_url=f"{cls.server.url}/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()


class Chat(WithServer):
    def ask(self, text=TEXT, **more):
        more.setdefault("max_tokens", 12)
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="demo", messages=messages, **more)

    def test_an_answer(self):
        answer = self.ask(temperature=0)
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_a_stream_is_the_same_text(self):
        whole = self.ask(temperature=1, seed=3, max_tokens=40)
        chunks = list(self.ask(temperature=1, seed=3, max_tokens=40, stream=True,
                               stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        self.assertEqual(reasons[-1], whole.choices[0].finish_reason)
        self.assertEqual(set(reasons[:-1]), {None})
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_choices_are_drawn_with_their_own_seeds(self):
        three = self.ask(n=3, temperature=1, seed=11)
        self.assertEqual([c.index for c in three.choices], [0, 1, 2])
        for i, choice in enumerate(three.choices):
            alone = self.ask(temperature=1, seed=11 + i)
            self.assertEqual(alone.choices[0].message.content, choice.message.content)

    def test_logprobs(self):
        answer = self.ask(temperature=0, logprobs=True, top_logprobs=4, max_tokens=6)
        for token in answer.choices[0].logprobs.content:
            self.assertEqual(len(token.top_logprobs), 4)
            self.assertLessEqual(token.logprob, 0)
            if token is not answer.choices[0].logprobs.content[0]:
                # In place of the first one a line break may have been passed over.
                self.assertEqual(token.token, token.top_logprobs[0].token)

    def test_a_conversation_is_not_read_again(self):
        messages = [{"role": "user", "content": TEXT}]
        for seed in range(4):
            answer = self.client.chat.completions.create(
                model="demo", messages=messages, temperature=1, seed=seed, max_tokens=120)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
            messages.append({"role": "user", "content": "And then?"})
            if seed:
                usage = answer.usage
                n_new = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
                self.assertLess(n_new, 24)

    def test_content_forms(self):
        parts = [{"type": "text", "text": "Ownership"}, {"type": "text", "text": "is"}]
        as_parts = self.client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=8)
        plain = self.ask("Ownership\nis", temperature=0, max_tokens=8)
        self.assertEqual(as_parts.choices[0].message.content, plain.choices[0].message.content)

    def test_schema(self):
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 8},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
        for seed in range(5):
            answer = self.ask(response_format=form, temperature=1, seed=seed, max_tokens=200)
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            Draft202012Validator(schema).validate(json.loads(answer.choices[0].message.content))

    def test_what_is_not_honoured_is_named(self):
        for more, named in [
            ({"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "string", "contentEncoding": "base64"}}}}, "contentEncoding"),
            ({"extra_body": {"prediction": {"type": "content", "content": "x"}}}, "prediction"),
            ({"extra_body": {"bogus": 1}}, "bogus"),
            ({"temperature": -1}, "temperature"),
            ({"top_p": 2}, "top_p"),
            ({"n": 0}, "n"),
        ]:
            with self.subTest(named):
                with self.assertRaises(openai.BadRequestError) as caught:
                    self.ask(**more)
                self.assertIn(named, str(caught.exception))

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_who_goes_is_gone(self):
        stream = self.ask(stream=True, max_tokens=100_000)
        next(iter(stream))
        stream.close()
        self.server.wait_until(lambda: self.server.metric("rwkv_edge_sequences_running") == 0)


class Completions(WithServer):
    def complete(self, prompt, **more):
        return self.client.completions.create(model="demo", prompt=prompt, temperature=0, **more)

    def test_prompts_of_all_forms(self):
        ids = self.server.post("/tokenize", model="demo", content=TEXT)[1]["tokens"]
        by_text = self.complete(TEXT)
        self.assertEqual(by_text.usage.completion_tokens, 16)
        self.assertEqual(self.complete(ids).choices[0].text, by_text.choices[0].text)
        several = self.complete([TEXT, "Rust"])
        self.assertEqual([c.index for c in several.choices], [0, 1])
        self.assertEqual(several.choices[0].text, by_text.choices[0].text)
        self.assertEqual(len(self.complete([ids, ids]).choices), 2)

    def test_tokens_there_and_back(self):
        ids = self.server.post("/tokenize", model="demo", content="Größe, 日本")[1]["tokens"]
        self.assertEqual(self.server.post("/detokenize", model="demo", tokens=ids)[1]["content"], "Größe, 日本")

    def test_echo_with_logprobs_as_harnesses_ask(self):
        answer = self.complete(TEXT, echo=True, logprobs=1, max_tokens=0)
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), TEXT)
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(p <= 0 for p in logprobs.token_logprobs[1:]))
        self.assertEqual(logprobs.text_offset[:2], [0, len(logprobs.tokens[0])])

    def test_stop(self):
        whole = self.complete(TEXT, max_tokens=60).choices[0].text
        word = whole.split()[5]
        stopped = self.complete(TEXT, max_tokens=60, stop=[word])
        self.assertEqual(stopped.choices[0].text, whole[: whole.index(word)])
        self.assertEqual(stopped.choices[0].finish_reason, "stop")

    def test_bias(self):
        token = self.server.post("/tokenize", model="demo", content=" owner")[1]["tokens"][0]
        forced = self.complete(TEXT, max_tokens=3, logit_bias={str(token): 100})
        text = self.server.post("/detokenize", model="demo", tokens=[token] * 3)[1]["content"]
        self.assertEqual(forced.choices[0].text, text)


class Embeddings(WithServer):
    def test_both_encodings(self):
        floats = self.client.embeddings.create(model="demo", input=[TEXT, "Rust"], encoding_format="float")
        packed = self.client.embeddings.create(model="demo", input=[TEXT, "Rust"], encoding_format="base64")
        self.assertEqual(len(floats.data), 2)
        for one, other in zip(floats.data, packed.data):
            vector = other.embedding
            if isinstance(vector, str):
                data = base64.b64decode(vector)
                vector = list(struct.unpack(f"<{len(data) // 4}f", data))
            for a, b in zip(one.embedding, vector):
                self.assertAlmostEqual(a, b, places=6)


class Models(WithServer):
    def test_the_list(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["demo"])


if __name__ == "__main__":
    unittest.main()
