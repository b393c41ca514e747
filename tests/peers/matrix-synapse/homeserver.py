"""A real Synapse whose access tokens truly expire and rotate.

Owns: the server side of the `matrix` tests. Accounts, devices, tokens and their ends are
Synapse's own; this file only writes a configuration with short lives and says when it listens.

Must never: listen anywhere but on 127.0.0.1, talk to another server, outlive the process that
started it, or write anything but the ready line to stdout.
"""

import argparse
import base64
import json
import os
import signal
import sys
import threading
from pathlib import Path


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number of seconds above 0")
    return number


def port(text):
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port; allowed are 0 (any free one) to 65535")
    return number


def parse_arguments():
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=env.get("SYNAPSE_PEER_FOLDER"), help="for its files, made when missing [SYNAPSE_PEER_FOLDER]")
    parser.add_argument("--port", type=port, default=env.get("SYNAPSE_PEER_PORT", "0"), help="0 picks a free one [SYNAPSE_PEER_PORT]")
    parser.add_argument(
        "--access-ttl",
        type=positive,
        default=env.get("SYNAPSE_PEER_ACCESS_TTL", "5"),
        metavar="SECONDS",
        help="how long an access token with a refresh token lives [SYNAPSE_PEER_ACCESS_TTL]",
    )
    parser.add_argument(
        "--refresh-ttl",
        type=positive,
        default=env.get("SYNAPSE_PEER_REFRESH_TTL", "3600"),
        metavar="SECONDS",
        help="how long a refresh token lives, anew with each rotation [SYNAPSE_PEER_REFRESH_TTL]",
    )
    parser.add_argument(
        "--limited",
        action="store_true",
        default=env.get("SYNAPSE_PEER_LIMITED") == "1",
        help="Synapse's own rate limits instead of none [SYNAPSE_PEER_LIMITED=1]",
    )
    arguments = parser.parse_args()
    if not arguments.folder:
        parser.error("--folder is missing; hint: name one in a temporary folder")
    return arguments


# The domain is reserved for examples: no account here can be one of a real homeserver.
NAME = "matrix.example"


def configuration(arguments, folder):
    settings = {
        "server_name": NAME,
        "report_stats": False,
        "pid_file": str(folder / "pid"),
        # Ed25519, one in 32 bytes is as good as another: nothing is signed for anybody.
        "signing_key": f"ed25519 a_peer {base64.b64encode(os.urandom(32)).decode().rstrip('=')}",
        "media_store_path": str(folder / "media"),
        # Empty: what would ask another server for its keys asks nobody.
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "federation_domain_whitelist": [],
        "listeners": [
            {
                "port": arguments.port,
                "type": "http",
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"], "compress": False}],
            }
        ],
        "database": {
            "name": "sqlite3",
            "args": {"database": str(folder / "homeserver.sqlite3")},
        },
        "enable_registration": True,
        "enable_registration_without_verification": True,
        # Drawn anew by each start: tests register by the open API.
        "macaroon_secret_key": os.urandom(24).hex(),
        "form_secret": os.urandom(24).hex(),
        "refreshable_access_token_lifetime": f"{arguments.access_ttl}s",
        "refresh_token_lifetime": f"{arguments.refresh_ttl}s",
        "presence": {"enabled": False},
        "enable_metrics": False,
        "bcrypt_rounds": 4,
        "no_redirect_stdio": True,
    }
    if not arguments.limited:
        many = {"per_second": 100_000, "burst_count": 100_000}
        settings |= {
            "rc_registration": many,
            "rc_login": {"address": many, "account": many, "failed_attempts": many},
        }
    return settings


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
    # Synapse reads JSON as the YAML it is.
    (folder / "homeserver.yaml").write_text(json.dumps(configuration(arguments, folder)))
    # Whatever Synapse or a library prints is a log; the ready line alone goes to stdout.
    ready_line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    # Late, for its import takes a second that a wrong argument need not wait for.
    from synapse.app import _base, homeserver
    from synapse.logging.context import LoggingContext
    from twisted.internet import reactor, tcp

    config = homeserver.load_or_generate_config(["--config-path", str(folder / "homeserver.yaml")])

    async def start(server):
        await homeserver.start(server)
        listeners = [reader for reader in reactor.getReaders() if isinstance(reader, tcp.Port)]
        ready = {
            "ready": True,
            "url": f"http://127.0.0.1:{listeners[0].getHost().port}",
            "pid": os.getpid(),
            "server_name": NAME,
            "access_ttl": arguments.access_ttl,
            "refresh_ttl": arguments.refresh_ttl,
        }
        print(json.dumps(ready), file=ready_line, flush=True)
        end_with_parent()

    with LoggingContext(name="main", server_name=NAME):
        server = homeserver.create_homeserver(config)
        try:
            homeserver.setup(server)
        except Exception as error:
            sys.exit(f"Synapse does not start: {error}")
        _base.register_start(server, start, server)
        homeserver.start_reactor(config)


if __name__ == "__main__":
    main()
