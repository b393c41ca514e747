"""A real SMTP server that takes letters, or refuses who can't sign in.

Owns: the server side of the e-mail tests. The protocol, STARTTLS and AUTH are aiosmtpd's; this
file only knows one user, and writes each letter that was taken into the folder, whole.

Must never: listen anywhere but on 127.0.0.1, pass a letter on, outlive the process that started
it, or write anything but the ready line to stdout.
"""

import argparse
import asyncio
import hmac
import json
import os
import signal
import ssl
import sys
import threading
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult


def port(text):
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port; allowed are 0 (any free one) to 65535")
    return number


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, type=Path, help="where letters go, made when missing")
    parser.add_argument("--port", type=port, default=0, help="0 picks a free one")
    parser.add_argument("--certificate", type=Path, help="PEM; with it STARTTLS is required before anything else")
    parser.add_argument("--key", type=Path, help="the certificate's, PEM")
    parser.add_argument("--user", help="with it nobody else may send; the password is the first line of stdin")
    arguments = parser.parse_args()
    if (arguments.certificate is None) != (arguments.key is None):
        parser.error("--certificate and --key go together")
    return arguments


def end_with_parent():
    """End when stdin closes: a killed test run must leave nothing behind."""

    def watch():
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if not os.isatty(0):
        threading.Thread(target=watch, daemon=True).start()


def first_line():
    """Byte by byte, for what comes after it is the watcher's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no password on stdin; hint: it is the first line")
        line += byte
    return line[:-1]


class Letters:
    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        letter = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "authenticated": bool(session.authenticated),
            "content": envelope.content.decode("utf-8", "replace"),
        }
        # Renamed into place, so that whoever looks sees whole ones.
        name = self.folder / f".{self.count:04}"
        name.write_text(json.dumps(letter))
        name.rename(self.folder / f"{self.count:04}.json")
        return "250 OK"


async def serve(arguments):
    password = first_line() if arguments.user else None
    end_with_parent()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    context = None
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)

    def authenticate(server, session, envelope, mechanism, data):
        known = data.login == arguments.user.encode() and hmac.compare_digest(data.password, password)
        # With handled=False the server itself says 535.
        return AuthResult(success=known, handled=False)

    letters = Letters(arguments.folder)

    def session():
        return SMTP(
            letters,
            hostname="localhost",
            enable_SMTPUTF8=True,
            tls_context=context,
            require_starttls=context is not None,
            authenticator=authenticate if arguments.user else None,
            auth_required=arguments.user is not None,
            auth_require_tls=context is not None,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", arguments.port)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    listening = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"smtp://127.0.0.1:{listening}", "port": listening}), flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(parse_arguments()))
