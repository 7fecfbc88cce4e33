"""Checkpoints written as other files, against the command."""

import tempfile
from pathlib import Path

import numpy as np
import rwkv_edge
from common import DEMO, GOLDEN, TestCase, command_json, demo


class Quantize(TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_a_model_file_is_the_quantised_model(self):
        for quant in ["int8", "q4", "f16"]:
            target = self.folder / f"demo-{quant}.rwkv"
            facts = rwkv_edge.quantize(DEMO, target, quant)
            self.assertEqual((Path(facts["file"]), facts["quant"]), (target, quant))
            self.assertEqual(facts["bytes"], target.stat().st_size)
            model = rwkv_edge.Model(target, threads=2)
            self.assertEqual(model.info["n_params"], facts["n_params"])
            np.testing.assert_array_equal(model.forward([1, 2])[0], demo(quant).forward([1, 2])[0])
            self.assertEqual(model.tokenizer.encode("A trait"), demo().tokenizer.encode("A trait"))
        self.assertEqual(rwkv_edge.quantize(DEMO, self.folder / "x")["quant"], "int8")

    def test_what_cannot_be_quantised(self):
        target = self.folder / "x.rwkv"
        self.assert_error("argument", "int9", rwkv_edge.quantize, DEMO, target, "int9")
        self.assert_error("io", "/no/such", rwkv_edge.quantize, "/no/such", target)
        self.assert_error("argument", "itself", rwkv_edge.quantize, DEMO, DEMO)
        self.assert_error("io", "/no/such", rwkv_edge.quantize, DEMO, "/no/such/folder/x.rwkv")
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assert_error("argument", "4 to 8.5", rwkv_edge.quantize, DEMO, target, target_bits=3)
        self.assert_error("argument", "expected one of", rwkv_edge.quantize, DEMO, target, target_bits=5, target_size=9)
        self.assert_error("argument", "expected one of", rwkv_edge.quantize, DEMO, target, "q4", target_bits=5)
        self.assert_error("io", "/no/such", rwkv_edge.quantize, DEMO, target, "q4", calibrate="/no/such")
        with self.assertRaisesRegex(TypeError, "quantize.* 'bits'"):
            rwkv_edge.quantize(DEMO, target, bits=4)
        other = self.folder / "text"
        other.write_text("no model")
        self.assert_error("argument", "not a model file", rwkv_edge.quantize, DEMO, other)
        self.assertEqual(other.read_text(), "no model")

    def test_the_command_writes_the_same(self):
        text = self.folder / "text"
        text.write_text("Ownership is what makes a program safe. " * 40)
        ours, theirs = self.folder / "ours.rwkv", self.folder / "theirs.rwkv"
        for options, arguments in [
            ({"quant": "q5"}, ["--quant", "q5"]),
            ({"target_bits": 5.5}, ["--target-bits", 5.5]),
            ({"target_size": 8_000_000}, ["--target-size", 8_000_000]),
            ({"quant": "q4", "calibrate": text, "calibrate_tokens": 64}, ["--quant", "q4", "--calibrate", text,
                                                                         "--calibrate-tokens", 64]),
        ]:
            with self.subTest(options):
                facts = rwkv_edge.quantize(DEMO, ours, threads=2, **options)
                wanted = command_json("quantize", "-m", DEMO, "-o", theirs, "--json", "-t", 2, *arguments)
                self.assertEqual(ours.read_bytes(), theirs.read_bytes())
                for name in ["quant", "n_params", "bytes", "bits_per_weight", "tokenizer"]:
                    self.assertEqual(facts[name], wanted[name])
        ids = demo().tokenizer.encode(text.read_text())[:64]
        rwkv_edge.quantize(DEMO, ours, "q4", calibrate=ids, threads=2)
        self.assertEqual(ours.read_bytes(), theirs.read_bytes())


class Convert(TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_both_ways(self):
        raw = rwkv_edge.convert(DEMO, self.folder, to="raw", dtype="f32")
        self.assertEqual((raw["output"], raw["dtype"]), (self.folder / "demo.pth", "f32"))
        back = rwkv_edge.convert(raw["output"], self.folder / "hf", max_shard_size=4_000_000)
        self.assertGreater(len(back["weight_files"]), 1)
        self.assertEqual(back["n_params"], demo().info["n_params"])
        wanted, _ = demo("f32").forward([1, 2, 3])
        for path in [raw["output"], back["output"]]:
            np.testing.assert_array_equal(rwkv_edge.Model(path, "f32", threads=2).forward([1, 2, 3])[0], wanted)

    def test_the_command_writes_the_same(self):
        ours, theirs = self.folder / "ours", self.folder / "theirs"
        facts = rwkv_edge.convert(DEMO, ours, dtype="bf16", tokenizer=DEMO / "tokenizer.json")
        wanted = command_json(
            "convert", "-m", DEMO, "-o", theirs, "--dtype", "bf16", "--tokenizer-file", DEMO / "tokenizer.json", "--json"
        )
        names = sorted(file.name for file in theirs.iterdir())
        self.assertEqual(sorted(file.name for file in ours.iterdir()), names)
        for name in names:
            self.assertEqual((ours / name).read_bytes(), (theirs / name).read_bytes(), name)
        self.assertEqual((facts["bytes"], facts["n_params"]), (wanted["bytes"], wanted["n_params"]))

    def test_what_cannot_be_converted(self):
        convert, target = rwkv_edge.convert, self.folder / "x"
        self.assert_error("argument", "hf or raw", convert, DEMO, target, to="gguf")
        self.assert_error("argument", "f32, f16 or bf16", convert, DEMO, target, dtype="int8")
        self.assert_error("argument", "no use", convert, DEMO, target, to="raw", max_shard_size=1)
        self.assert_error("io", "/no/such", convert, "/no/such", target)
        convert(GOLDEN / "v7-pth/model.pth", target)
        with self.assertRaises(rwkv_edge.Error):
            convert(GOLDEN / "v7-pth/model.pth", target)
        convert(GOLDEN / "v7-pth/model.pth", target, overwrite=True)
