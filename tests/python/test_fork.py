"""Models in processes that were forked: they work or are refused, and never hang."""

from common import DEMO, TestCase, run_python

# Whoever hangs is ended by SIGALRM.
BEGIN = """
import os, signal, sys, threading, time, warnings
import numpy as np
import rwkv_edge

# That a process with threads is forked is what this is about.
warnings.simplefilter("ignore")

def in_child(work):
    "Forks, runs work in the child, which then ends as every Python does, and gives its exit code."
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        sys.exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

model = rwkv_edge.Model(sys.argv[1], "int8", threads=3, **eval(sys.argv[2]))
tokens = list(range(1, 200))
wanted, _ = model.forward(tokens)
same = lambda: 0 if np.array_equal(model.forward(tokens)[0], wanted) else 1
"""


class Fork(TestCase):
    def run_program(self, program: str, options: str = "{}") -> list[str]:
        done = run_python(BEGIN + program, DEMO, options)
        # Also of what Python reports and goes on behind.
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.split()

    def test_a_child_goes_on(self):
        program = """
state = model.forward(tokens[:50])[1]
stream = model.stream("A", max_new_tokens=9)
begin = next(stream)
def work():
    if not np.array_equal(model.forward(tokens[50:], state)[0], wanted):
        return 1
    if begin + "".join(stream) != model.generate("A", max_new_tokens=9).text:
        return 2
    # One that is its own, and its own child.
    other = rwkv_edge.Model(sys.argv[1], "int8", threads=3)
    if not np.array_equal(other.forward(tokens)[0], wanted):
        return 3
    return in_child(same)
print(in_child(work), in_child(same), same(), state.n_tokens)
"""
        self.assertEqual(self.run_program(program), ["0", "0", "0", "50"])

    def test_a_child_drops_a_model(self):
        program = """
def drop():
    global model
    model = None
    return 0
print(in_child(drop), same())
"""
        self.assertEqual(self.run_program(program), ["0", "0"])

    def test_one_with_a_memory_limit(self):
        self.assertEqual(self.run_program("print(in_child(same), same())", "{'max_memory': 40 << 20}"), ["0", "0"])

    def test_a_pool_of_processes(self):
        program = """
import multiprocessing
def read(n):
    return model.forward(tokens[:n])[1]
with multiprocessing.get_context("fork").Pool(2) as pool:
    states = pool.map(read, [10, 20, 199])
for state in states:
    model.forward([1], state)
print(*(state.n_tokens for state in states))
"""
        self.assertEqual(self.run_program(program), ["11", "21", "200"])

    def test_a_fork_beside_a_pass(self):
        # Another thread is always in a call: no child may use the model, and each says so.
        for options in ["{}", "{'max_memory': 40 << 20}"]:
            program = """
def refused():
    try:
        model.forward([1])
    except rwkv_edge.Error as error:
        assert "forked" in str(error), error
        # What it opens for itself works.
        other = rwkv_edge.Model(sys.argv[1], "int8", threads=2)
        return 0 if np.array_equal(other.forward(tokens)[0], wanted) and error.kind == "unsupported" else 1
    return 2

# It goes on until the process ends.
state = model.new_state()
options = {"max_new_tokens": 10**9, "ignore_eos": True, "state": state}
threading.Thread(target=lambda: model.generate("A", **options), daemon=True).start()
try:
    while state.n_tokens == 0:
        time.sleep(0.001)
except RuntimeError:
    pass  # The state is in use: the call has begun.
codes = []
while len(codes) < 10:
    codes.append(in_child(refused))
print(*codes, same(), flush=True)
os._exit(0)
"""
            self.assertEqual(self.run_program(program, options), ["0"] * 11)
