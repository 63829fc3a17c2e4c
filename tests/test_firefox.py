"""The book in Firefox, which speaks WebDriver BiDi by itself: no driver is needed."""

import itertools
import json
import re
import shutil
import subprocess
import threading

import pytest
import test_pages
import websocket
from conftest import ROOT, pages

address = test_pages.address  # a fixture

WITH_EXPLORERS = [
    page
    for page in pages()
    if (ROOT / f"{page}.ipynb").exists()
    and 'class=\\"explorer\\"' in (ROOT / f"{page}.ipynb").read_text(encoding="utf-8")
]


class Firefox:
    """One tab of a Firefox without a window."""

    def __init__(self, path, profile):
        command = [path, "--headless", "--remote-debugging-port=0"]
        self.process = subprocess.Popen(
            [*command, "--profile", str(profile), "--no-remote"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if found := re.search(r"BiDi listening on (ws://\S+)", line):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.socket = websocket.create_connection(
            f"{found[1]}/session", timeout=60, suppress_origin=True
        )
        self.numbers, self.errors = itertools.count(1), []
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded"])
        tree = self.ask("browsingContext.getTree")
        self.tab = tree["contexts"][0]["context"]

    def ask(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "log.entryAdded":
                if answer["params"]["level"] == "error":
                    self.errors.append(answer["params"]["text"])
            elif answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def open(self, url):
        self.errors.clear()
        self.ask("browsingContext.navigate", context=self.tab, url=url, wait="complete")

    def evaluate(self, expression):
        """The value of a JavaScript expression, a promise's when it is kept."""
        as_text = "then(value => JSON.stringify(value ?? null))"
        answer = self.ask(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).{as_text}",
            target={"context": self.tab},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def press(self, key):
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        actions = [{"type": "key", "id": "keyboard", "actions": keys}]
        self.ask("input.performActions", context=self.tab, actions=actions)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    path = shutil.which("firefox-esr") or shutil.which("firefox")
    if path is None:
        pytest.skip("Firefox is missing (Debian: apt-get install firefox-esr)")
    profile = tmp_path_factory.mktemp("firefox")
    quiet = 'user_pref("datareporting.policy.dataSubmissionEnabled", false);\n'
    (profile / "user.js").write_text(quiet, encoding="utf-8")
    browser = Firefox(path, profile)
    yield browser
    browser.close()


SHOWN = """[...document.querySelectorAll('.explorer')].map(box => ({
  open: [...box.querySelectorAll('.frame')].map(f => f.hidden ? 0 : 1),
  value: box.querySelector('output').textContent,
  spoken: box.querySelector('input').getAttribute('aria-valuetext'),
}))"""
FIRST = "document.querySelector('.explorer-bar input')"


@pytest.mark.check
@pytest.mark.parametrize("name", WITH_EXPLORERS)
def test_explorers_move_by_key_and_play_to_the_end(firefox, address, name):
    firefox.open(f"{address}{name}.html")
    for box in firefox.evaluate(SHOWN):
        assert sum(box["open"]) == 1 and box["value"] == box["spoken"]
    last = int(firefox.evaluate(f"{FIRST}.max"))
    firefox.evaluate(f"{FIRST}.focus()")
    for key, place in (("\ue011", 0), ("\ue014", 1), ("\ue010", last)):  # Home, →, End
        firefox.press(key)
        assert firefox.evaluate(SHOWN)[0]["open"].index(1) == place
    firefox.press("\ue012")  # ←, one before the end
    firefox.evaluate("document.querySelector('.explorer-bar button').click()")
    stopped = f"""new Promise((done, never) => {{
      const button = document.querySelector('.explorer-bar button');
      const look = setInterval(() => {{
        if (button.className === 'play') {{ clearInterval(look); done(true); }}
      }}, 50);
      setTimeout(() => never('still playing'), 10000);
    }}).then(() => {FIRST}.value)"""
    assert int(firefox.evaluate(stopped)) == last
    assert firefox.errors == []


@pytest.mark.check
@pytest.mark.parametrize("name", pages())
def test_pages_open_without_an_error(firefox, address, name):
    firefox.open(f"{address}{name}.html")
    broken = "i => i.src && i.complete && !i.naturalWidth"
    assert firefox.evaluate(f"[...document.images].filter({broken}).length") == 0
    assert firefox.errors == []
