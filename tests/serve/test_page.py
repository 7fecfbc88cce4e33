"""The page at `/`, in a browser: Debian's Chromium without a window."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from server import Server

AXE = "axe-core@4.14.1"
LONG_TASK_MS = 100


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


@unittest.skipUnless(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium and its driver")
class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.browser = browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.quit()
        cls.server.__exit__()

    def setUp(self):
        self.open(self.server)
        self.browser.execute_script("localStorage.clear()")
        self.open(self.server)

    def tearDown(self):
        # Nothing is refused by the policy, and nothing throws, unless a test looks for that.
        told = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        self.assertEqual([text for text in told if "Failed to load resource" not in text], [])

    def open(self, server):
        self.browser.get(f"{server.url}/")
        self.wait(lambda: self.find("#model option"))

    def find(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.find(selector)[0]

    def wait(self, holds, seconds=30):
        passing = [StaleElementReferenceException]
        return WebDriverWait(self.browser, seconds, 0.02, passing).until(lambda _: holds())

    def set(self, name, value):
        self.browser.execute_script(
            "const [name, value] = arguments; const field = document.getElementById(name); field.value = value;"
            "field.dispatchEvent(new Event('change', {bubbles: true}))", name, str(value))

    def send(self, text, n_answers=None, **settings):
        """Sends a message and waits for the answer; gives its text and the line of facts."""
        for name, value in {"temperature": 0, "max_tokens": 12, **settings}.items():
            self.set(name, value)
        n_before = len(self.find("article.assistant"))
        self.one("#message").send_keys(text, Keys.ENTER)
        self.done(n_answers or n_before + 1)
        return self.last()

    def done(self, n_answers):
        self.wait(lambda: len(self.find("article.assistant")) == n_answers and self.one("#send").is_displayed())

    def last(self):
        made = self.find("article.assistant")[-1]
        parts = [made.find_element(By.CSS_SELECTOR, one) for one in (".text", ".facts")]
        return [part.text for part in parts]

    def tool(self, which, label):
        for button in which.find_elements(By.CSS_SELECTOR, ".tools button"):
            if button.text == label:
                return button.click()
        raise AssertionError(f"no button {label}")

    def test_an_answer_comes_and_is_found_again(self):
        text, facts = self.send("A trait is a")
        self.assertTrue(text.strip())
        self.assertRegex(facts, r"\d+ ms to the first token · \d+ tokens.* · \d+ of \d+ prompt tokens read")
        second, facts = self.send("A lifetime is")
        self.assertRegex(facts, r", [1-9]\d* known")
        self.browser.refresh()
        self.wait(lambda: len(self.find("article.assistant")) == 2)
        self.assertEqual(self.last()[0], second)
        self.assertEqual(len(self.find("#conversations li")), 1)
        # Another one, and back.
        self.one("#new").click()
        self.assertEqual(self.find("article"), [])
        self.send("Ownership is", n_answers=1)
        self.find("#conversations li > button:first-child")[1].click()
        self.assertEqual(len(self.find("article.assistant")), 2)

    def test_pieces_come_as_they_are_made_and_can_be_stopped(self):
        for name, value in {"temperature": 1, "max_tokens": 2000, "seed": 5, "frequency_penalty": 0.1}.items():
            self.set(name, value)
        self.one("#message").send_keys("Write about ownership", Keys.ENTER)
        self.wait(lambda: self.find("article.assistant") and self.last()[0])
        if self.one("#stop").is_displayed():
            early = self.last()[0]
            self.one("#stop").click()
            self.done(1)
            text, facts = self.last()
            self.assertTrue(text.startswith(early[:20]))
            self.assertIn("stopped", facts)
            self.assertEqual(self.one("#told").text, "Stopped.")
            self.server.wait_until(lambda: self.server.metric("rwkv_edge_sequences_running") == 0)

    def test_edited_and_regenerated_messages_read_little_again(self):
        self.send("A trait is a " + "type that says what others can do. " * 8)
        self.send("A lifetime is a")
        self.tool(self.find("article.user")[1], "Edit")
        area = self.one("article textarea")
        area.clear()
        area.send_keys("A closure is a")
        self.tool(self.find("article.user")[1], "Send edited")
        self.done(2)
        self.assertEqual(self.find("article.user .text")[1].text, "A closure is a")
        read, of = map(int, self.last()[1].split(" prompt tokens")[0].split("· ")[-1].split(" of "))
        self.assertLess(read, of / 3)
        before = self.last()[0]
        self.tool(self.find("article.assistant")[1], "Regenerate")
        self.done(2)
        self.assertEqual(self.last()[0], before)
        self.assertTrue(self.last()[1].split("· ")[-1].startswith("1 of "), self.last()[1])

    def test_a_session_of_the_server_goes_on(self):
        self.server.post("/v1/chat/completions", session="ann", max_tokens=4, temperature=0,
                         messages=[{"role": "user", "content": "A trait is a"}])
        self.browser.refresh()
        self.wait(lambda: any("ann" in item.text for item in self.find("#sessions li")))
        [item for item in self.find("#sessions li") if "ann" in item.text][0].find_element(By.TAG_NAME, "button").click()
        _, facts = self.send("And a closure?", n_answers=1)
        read, of = map(int, facts.split(" prompt tokens")[0].split("· ")[-1].split(" of "))
        self.assertLess(of, 40)
        self.one("[aria-label='Delete session ann']").click()
        self.wait(lambda: not any("ann" in item.text for item in self.find("#sessions li")))

    def test_another_tab_takes_nothing_away(self):
        first = self.browser.current_window_handle
        self.send("A trait is a")
        self.browser.switch_to.new_window("tab")
        self.open(self.server)
        self.one("#new").click()
        self.send("A closure is a", n_answers=1)
        self.browser.close()
        self.browser.switch_to.window(first)
        self.wait(lambda: len(self.find("#conversations li")) == 2)
        self.send("And then?")
        self.open(self.server)
        self.assertEqual(len(self.find("#conversations li")), 2)

    def test_a_page_that_goes_keeps_what_there_is(self):
        for name, value in {"temperature": 1, "max_tokens": 2000, "seed": 5}.items():
            self.set(name, value)
        self.one("#message").send_keys("Write about ownership", Keys.ENTER)
        self.wait(lambda: self.find("article.user"))
        self.browser.refresh()
        self.wait(lambda: self.find("article.user"))
        self.assertEqual(self.one("article.user .text").text, "Write about ownership")

    def test_each_model_has_its_own_sessions(self):
        root = pathlib.Path(__file__).resolve().parents[2]
        models = [f"--model=a={root}/cli/demo", f"--model=b={root}/tests/fixtures/demo4"]
        with Server(*models) as server:
            server.post("/v1/chat/completions", model="b", session="bob", max_tokens=4, temperature=0,
                        messages=[{"role": "user", "content": "A trait is a"}])
            self.open(server)
            self.wait(lambda: self.one("#sessions").text == "none")
            self.set("model", "b")
            self.wait(lambda: "bob" in self.one("#sessions").text)
            self.one("#sessions button").click()
            self.send("And then?", n_answers=1)
            self.assertEqual(self.one("#error").text, "")
            self.one("[aria-label='Delete session bob']").click()
            self.wait(lambda: self.one("#sessions").text == "none")

    def test_what_the_model_writes_is_never_html(self):
        evil = (
            "<img src=x onerror=\"window.hit=1\"> <script>window.hit=1</script> [a](javascript:window.hit=1)"
            " [b](https://example.org/) **bold** `code`\n\n```html\n<b>x</b>\n```\n- one\n- two\n# Title"
        )
        told = [{"id": "x", "settings": {}, "messages": [
            {"role": "user", "content": evil}, {"role": "assistant", "content": evil, "thought": evil}]}]
        self.browser.execute_script("localStorage.setItem('conversations', arguments[0])", json.dumps(told))
        self.open(self.server)
        self.wait(lambda: self.find("article.assistant"))
        self.assertEqual(self.find("article img, article script, article b"), [])
        self.assertEqual([a.get_attribute("href") for a in self.find("article a")], ["https://example.org/"])
        self.assertIsNone(self.browser.execute_script("return window.hit ?? null"))
        self.assertEqual(self.one("article.assistant pre").text, "<b>x</b>")
        self.assertEqual([item.text for item in self.find("article.assistant li")], ["one", "two"])

    def test_errors_are_told(self):
        text = "x " * 4
        self.set("max_tokens", 12)
        self.set("top_p", 7)
        self.one("#message").send_keys(text, Keys.ENTER)
        self.wait(lambda: "top_p" in self.one("#error").text)
        self.assertEqual(self.one("#message").get_attribute("value").strip(), text.strip())
        self.assertEqual(self.find("article"), [])
        self.set("top_p", "")
        with Server() as other:
            self.open(other)
            other.kill()
            self.one("#message").send_keys("A trait is a", Keys.ENTER)
            self.wait(lambda: self.one("#error").text)
            self.assertEqual(self.one("#message").get_attribute("value"), "A trait is a")
        self.browser.get_log("browser")

    def test_a_key_is_asked_for(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write("ann secret-of-ann\n")
            keys.flush()
            with Server("--api-key-file", keys.name) as server:
                self.browser.get(f"{server.url}/")
                for given, told in [("wrong", "need one"), ("secret-of-ann", "not known")]:
                    self.wait(lambda told=told: told in self.one("#key-why").text and self.one("#ask-key").is_displayed())
                    self.one("#key").clear()
                    self.one("#key").send_keys(given, Keys.ENTER)
                self.wait(lambda: self.find("#model option"))
                self.assertTrue(self.send("A trait is a", n_answers=1)[0])
                self.assertIsNone(self.browser.execute_script("return localStorage.getItem('key') === 'null' ? null : 1"))

    def test_one_request_paints_and_no_other_host_is_asked(self):
        script = "return performance.getEntriesByType('resource').map((one) => [one.name, one.initiatorType])"
        asked = self.browser.execute_script(script)
        self.assertTrue(all(name.startswith(self.server.url) for name, _ in asked), asked)
        self.assertEqual({kind for _, kind in asked} - {"fetch"}, set())
        _, answer, page = self.server.request("GET", "/")
        self.assertLessEqual(len(page), 60_000)
        policy = answer.getheader("Content-Security-Policy")
        self.assertIn("default-src 'self'; script-src 'sha256-", policy)
        self.assertNotIn("unsafe", policy)

    def test_a_narrow_screen(self):
        self.browser.set_window_size(375, 700)
        try:
            self.send("A trait is a " + "verylongwordwithoutanyspace" * 6)
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            self.assertEqual(self.browser.execute_script(wide), 0)
            self.assertFalse(self.one("#list").is_displayed())
            self.one("#toggle-list").click()
            self.assertTrue(self.one("#list").is_displayed())
            self.one("#conversations button").click()
            self.assertFalse(self.one("#list").is_displayed())
            self.one("#tab-server").click()
            self.wait(lambda: self.find("#server table"))
            self.assertEqual(self.browser.execute_script(wide), 0)
        finally:
            self.browser.set_window_size(1200, 900)

    def test_the_server_is_shown(self):
        self.send("A trait is a")
        self.one("#tab-chat").send_keys(Keys.ARROW_RIGHT)
        self.wait(lambda: self.find("#server table"))
        self.assertIn("demo", self.one("#server tbody").text)
        self.wait(lambda: len(self.one("#server polyline").get_attribute("points").split()) >= 2)
        self.browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        self.wait(lambda: self.one("#message").is_displayed())

    def test_five_thousand_tokens_scroll_without_a_stall(self):
        # Four characters a token.
        paragraph = "Ownership is *the* most distinctive **feature** of `Rust`, and it has deep implications. " * 4
        answer = f"# Title\n\n{paragraph}\n\n- one\n- two\n\n```\nlet x = 1;\n```\n\n{paragraph}"
        messages = [m for _ in range(28) for m in (
            {"role": "user", "content": "And then?"}, {"role": "assistant", "content": answer})]
        self.assertGreater(sum(len(m["content"]) for m in messages) / 4, 5000)
        told = json.dumps([{"id": "x", "settings": {}, "messages": messages}])
        self.browser.execute_script("localStorage.setItem('conversations', arguments[0])", told)
        self.open(self.server)
        self.wait(lambda: len(self.find("article")) == len(messages))
        self.browser.execute_script(
            "window.long = []; new PerformanceObserver((list) => window.long.push(...list.getEntries()"
            ".map((one) => one.duration))).observe({type: 'longtask'})")
        self.browser.execute_async_script(
            "const done = arguments[0], log = document.getElementById('log'); log.scrollTop = 0;"
            "const step = () => { log.scrollTop += 120; const end = log.scrollHeight - log.clientHeight - 1;"
            "log.scrollTop >= end ? done() : requestAnimationFrame(step); }; requestAnimationFrame(step)")
        self.send("And then?", n_answers=29)
        self.assertEqual([ms for ms in self.browser.execute_script("return window.long") if ms > LONG_TASK_MS], [])

    @unittest.skipUnless(shutil.which("npm"), "npm")
    def test_axe_finds_nothing(self):
        folder = pathlib.Path(os.environ["RWKV_EDGE"]).parent / "axe"
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, AXE]
        if subprocess.run(npm, stdout=subprocess.DEVNULL).returncode:
            self.skipTest("axe-core")
        axe = (folder / "node_modules/axe-core/axe.min.js").read_text()
        self.send("A trait is a")
        self.one("#settings summary").click()
        found = []
        for scheme in ["light", "dark"]:
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            for tab in ["server", "chat"]:
                self.one(f"#tab-{tab}").click()
                if tab == "server":
                    self.wait(lambda: self.find("#server table"))
                time.sleep(0.2)
                self.browser.execute_script(axe)
                result = self.browser.execute_async_script("axe.run().then(arguments[0])")
                for one in result["violations"]:
                    found.append((scheme, tab, one["id"], [node["html"] for node in one["nodes"]][:3]))
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        self.assertEqual(found, [])


if __name__ == "__main__":
    unittest.main()
