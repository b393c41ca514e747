"""A real JupyterHub whose API tokens truly expire, multiply and are deleted.

Owns: the server side of the `jupyterhub` tests. Users, tokens, scopes and their ends are the
Hub's own; this file only gives it a configuration and says when it listens. No proxy stands
before it, for only its API is asked: what a proxy would be told is taken note of and that is all.

Must never: listen anywhere but on 127.0.0.1, start a notebook server, outlive the process that
started it, or write anything but the ready line to stdout.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path


def port(text):
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port; allowed are 0 (any free one) to 65535")
    return number


def prefix(text):
    if not (text.startswith("/") and text.endswith("/")):
        raise argparse.ArgumentTypeError(f"{text} is not a path that begins and ends with /, such as /jupyter/")
    return text


def parse_arguments():
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=env.get("HUB_PEER_FOLDER"), help="for its files, made when missing [HUB_PEER_FOLDER]")
    parser.add_argument("--port", type=port, default=env.get("HUB_PEER_PORT", "0"), help="0 picks a free one [HUB_PEER_PORT]")
    parser.add_argument("--prefix", type=prefix, default=env.get("HUB_PEER_PREFIX", "/jupyter/"), help="the path below which it is served [HUB_PEER_PREFIX]")
    arguments = parser.parse_args()
    if not arguments.folder:
        parser.error("--folder is missing; hint: name one in a temporary folder")
    return arguments


def end_with_parent():
    """End when stdin closes: a killed test run must leave nothing behind."""

    def watch():
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # A person at a terminal has Ctrl-C, and a background job must not read it.
    if not os.isatty(0):
        threading.Thread(target=watch, daemon=True).start()


def main():
    arguments = parse_arguments()
    folder = Path(arguments.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Bound before the Hub begins, which takes a number and no socket: nobody else can take it.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", arguments.port))
    except OSError as error:
        sys.exit(f"cannot listen on 127.0.0.1:{arguments.port}: {error}")
    listener.listen(128)
    listener.setblocking(False)
    number = listener.getsockname()[1]
    # Whatever the Hub or a library prints is a log; the ready line alone goes to stdout.
    ready_line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    # Late, for its import takes a second that a wrong argument need not wait for.
    from jupyterhub.app import JupyterHub
    from jupyterhub.proxy import Proxy
    from tornado.httpserver import HTTPServer
    from traitlets.config import Config

    class NoProxy(Proxy):
        should_start = False

        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.routes = {}

        async def add_route(self, routespec, target, data):
            self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

        async def delete_route(self, routespec):
            self.routes.pop(routespec, None)

        async def get_all_routes(self):
            return self.routes

    # The one place where the Hub listens.
    HTTPServer.listen = lambda server, *_, **__: server.add_sockets([listener])

    operator = secrets.token_hex(32)
    config = Config()
    # Everything stands here; the file is there for the Hub to find one.
    (folder / "jupyterhub_config.py").touch()
    config.JupyterHub.config_file = str(folder / "jupyterhub_config.py")
    config.JupyterHub.bind_url = f"http://127.0.0.1:{number}{arguments.prefix}"
    config.JupyterHub.hub_ip = "127.0.0.1"
    config.JupyterHub.hub_port = number
    config.JupyterHub.db_url = f"sqlite:///{folder / 'hub.sqlite3'}"
    config.JupyterHub.cookie_secret = os.urandom(32)
    config.JupyterHub.proxy_class = NoProxy
    config.JupyterHub.authenticator_class = "dummy"
    config.JupyterHub.spawner_class = "simple"
    config.Authenticator.allow_all = True
    config.JupyterHub.log_level = "WARN"
    # Plays the hub's administrator: it makes users and their first tokens.
    config.JupyterHub.services = [{"name": "operator", "api_token": operator}]
    config.JupyterHub.load_roles = [
        {"name": "operator", "scopes": ["admin:users", "tokens", "admin:groups"], "services": ["operator"]}
    ]

    async def serve():
        hub = JupyterHub(config=config)
        await hub.initialize([])
        await hub.start()
        ready = {
            "ready": True,
            "url": f"http://127.0.0.1:{number}{arguments.prefix}".rstrip("/"),
            "pid": os.getpid(),
            "operator_token": operator,
        }
        print(json.dumps(ready), file=ready_line, flush=True)
        end_with_parent()
        await asyncio.Event().wait()

    os.chdir(folder)
    asyncio.run(serve())


if __name__ == "__main__":
    main()
