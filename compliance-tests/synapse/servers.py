"""The servers of a run: started, stopped for a while, started again from what they have on disk."""

import contextlib
import hashlib
import hmac
import json
import os
import signal
import subprocess
import time
import urllib.request

from client import PASSWORD, TLS, Refused, User, until

# What both servers have for registering admins.
SECRET = b"flows"
# How long a server may take to end, in seconds.
STOP_MAX = 30


class Server:
    def __init__(self, directory, name, address, command):
        self.name, self.address, self.command = name, address, command
        self.base = "https://" + address
        self.log = os.path.join(directory, name + ".log")
        self.process, self.admin = None, None

    def start(self):
        with open(self.log, "a", encoding="utf-8") as log:
            # The kernel ends it should this process be killed.
            command = ["setpriv", "--pdeathsig", "KILL", *self.command]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_up(self):
        until(f"{self.name} is up", self.is_up, patience=60)

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}, see {self.log}")
        try:
            urllib.request.urlopen(self.base + "/_matrix/client/versions", context=TLS, timeout=5).close()
            return True
        except OSError:
            return False

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end in {STOP_MAX} s") from None
        finally:
            self.process = None

    @contextlib.contextmanager
    def away(self):
        """It is down for as long as the block takes."""
        self.stop()
        try:
            yield
        finally:
            self.start()
            self.wait_until_up()

    @contextlib.contextmanager
    def frozen(self):
        """It takes connections and answers nothing for as long as the block takes."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def destination(self, other, method="GET", action="", body=None):
        """What admins are told of `other` as one that is sent to, and what they do about it."""
        if self.admin is None:
            self.admin = Admin(self, "admin")
        path = f"/_synapse/admin/v1/federation/destinations/{other.address}{action}"
        return self.admin.call(method, path, body, root="")

    def leaves_alone(self, other):
        return self.destination(other)["retry_interval"] > 0

    def expect(self, other):
        """`other` is not left alone any longer, unless it was found to be back already."""
        with contextlib.suppress(Refused):
            self.destination(other, "POST", "/reset_connection", {})


class Admin(User):
    """Made with the secret, in the way that Synapse's script for it does."""

    def __init__(self, server, name):
        self.server, self.token, self.txn, self.name = server, None, 0, f"{name}{time.monotonic_ns()}"
        path = "/_synapse/admin/v1/register"
        nonce = self.call("GET", path, root="")["nonce"]
        parts = [nonce, self.name, PASSWORD, "admin"]
        mac = hmac.new(SECRET, "\0".join(parts).encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": self.name, "password": PASSWORD, "admin": True, "mac": mac}
        self.keep(self.call("POST", path, body, root=""))


@contextlib.contextmanager
def running(path):
    """The servers that the JSON file at `path` lists, running."""
    with open(path, encoding="utf-8") as file:
        servers = [Server(os.path.dirname(path), **entry) for entry in json.load(file)]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_up()
        yield servers
    finally:
        for server in servers:
            with contextlib.suppress(AssertionError):
                server.stop()
