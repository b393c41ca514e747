"""A real Django site whose database sessions truly expire and rotate.

Owns: the server side of the `http-session` tests. Sessions, their expiry, the
log-in form with its CSRF check and the cookies are Django's own; this file only
switches them on and counts what the site saw.

Must never: listen anywhere but on 127.0.0.1, outlive the process that started
it, or write anything but the ready line (or the issued session) to stdout.
"""

import argparse
import json
import logging
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

COUNTED = ("requests", "dead_session_requests", "logins", "issued", "cycles", "keepalives")


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
    parser.add_argument("--db", default=env.get("DJANGO_SITE_DB"), help="SQLite file, made when missing [DJANGO_SITE_DB]")
    parser.add_argument("--port", type=port, default=env.get("DJANGO_SITE_PORT", "0"), help="0 picks a free one [DJANGO_SITE_PORT]")
    parser.add_argument(
        "--session-age",
        type=positive,
        default=env.get("DJANGO_SITE_SESSION_AGE", "3"),
        metavar="SECONDS",
        help="how long a session lives after it was last saved [DJANGO_SITE_SESSION_AGE]",
    )
    parser.add_argument(
        "--save-every-request",
        action="store_true",
        default=env.get("DJANGO_SITE_SAVE_EVERY_REQUEST") == "1",
        help="every request with a live session renews it [DJANGO_SITE_SAVE_EVERY_REQUEST=1]",
    )
    parser.add_argument(
        "--issue",
        metavar="USER",
        help="serve nothing: log USER in (made when missing), print the session as one JSON line, end",
    )
    arguments = parser.parse_args()
    if not arguments.db:
        parser.error("--db is missing; hint: name a SQLite file in a temporary folder")
    if not Path(arguments.db).absolute().parent.is_dir():
        parser.error(f"--db {arguments.db}: the folder does not exist")
    return arguments


def site_key(db):
    """The key this database's sessions are signed with, made on first use.

    It lies beside the database because `--issue` runs in a process of its own
    and must sign what the server accepts. Linked into place whole, so that two
    first starts at once agree on one key.
    """
    path = Path(f"{db}.key")
    if not path.exists():
        draft = Path(f"{path}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


ARGUMENTS = parse_arguments()

from django.conf import settings  # noqa: E402

settings.configure(
    DEBUG=False,
    SECRET_KEY=site_key(ARGUMENTS.db),
    # `.localhost` lets a test give one address several host names.
    ALLOWED_HOSTS=["127.0.0.1", "localhost", ".localhost"],
    ROOT_URLCONF=__name__,
    LOGGING_CONFIG=None,
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        f"{__name__}.count_requests",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ARGUMENTS.db,
            "OPTIONS": {
                # A write lock from the start: a read that turns into a write
                # fails at once in SQLite instead of waiting for its turn.
                "transaction_mode": "IMMEDIATE",
                "timeout": 10,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    SESSION_ENGINE="django.contrib.sessions.backends.db",
    SESSION_COOKIE_AGE=ARGUMENTS.session_age,
    SESSION_SAVE_EVERY_REQUEST=ARGUMENTS.save_every_request,
    # Django's default takes a third of a second per log-in, this a twentieth.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.ScryptPasswordHasher"],
    LOGIN_URL="/login/",
    LOGIN_REDIRECT_URL="/account/",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {
                            "login.html": """<!doctype html>
<html lang="en"><title>Log in</title>
<h1>Log in</h1>
<form method="post">{% csrf_token %}{{ form.as_p }}
<input type="hidden" name="next" value="{{ next }}"><button>Log in</button></form>
</html>
"""
                        },
                    )
                ]
            },
        }
    ],
)

import django  # noqa: E402

django.setup()

from django.contrib.auth import get_user_model, login  # noqa: E402
from django.contrib.auth.decorators import login_required  # noqa: E402
from django.contrib.auth.signals import user_logged_in  # noqa: E402
from django.contrib.auth.views import LoginView  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402
from django.utils.crypto import salted_hmac  # noqa: E402
from django.views.decorators.cache import never_cache  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

counts = dict.fromkeys(COUNTED, 0)
counts_lock = threading.Lock()


def count(name):
    with counts_lock:
        counts[name] += 1


def count_requests(get_response):
    """Count requests, and those that came with a session id Django no longer knows."""

    def middleware(request):
        count("requests")
        if settings.SESSION_COOKIE_NAME in request.COOKIES:
            # Any read makes Django load the row; it drops the id when there is
            # no row, or one past its expiry.
            request.session.get("")
            if request.session.session_key is None:
                count("dead_session_requests")
        return get_response(request)

    return middleware


def state_of(request):
    return {"user": request.user.get_username(), "session_expires_in": request.session.get_expiry_age()}


@never_cache
@login_required
def account(request):
    return JsonResponse(state_of(request))


@never_cache
@csrf_exempt
@login_required
def refresh(request):
    """Give the session a new id and a full life. The old id is dead at once."""
    request.session.cycle_key()
    count("cycles")
    return JsonResponse(state_of(request))


@never_cache
@csrf_exempt
@login_required
def keepalive(request):
    """Give the session a full life under the id it has."""
    request.session.modified = True
    count("keepalives")
    return JsonResponse(state_of(request))


@never_cache
def stats(_request):
    with counts_lock:
        seen = dict(counts)
    seen["session_rows"] = Session.objects.count()
    seen["live_sessions"] = Session.objects.filter(expire_date__gt=timezone.now()).count()
    return JsonResponse(seen)


def issue_session(name):
    """Log a user in as Django does, without the form, and say how to come back."""
    user_model = get_user_model()
    # Derived, not drawn: a second issue can name the password without setting
    # it anew, which would end the sessions the user already has.
    password = salted_hmac("peer-password", name).hexdigest()
    user = user_model.objects.filter(username=name).first()
    if user is None:
        user = user_model.objects.create_user(name, password=password)
    request = HttpRequest()
    request.META["REMOTE_ADDR"] = "127.0.0.1"
    request.session = SessionStore()
    login(request, user)
    request.session.save()
    return {
        "user": name,
        "password": password,
        "session_age": settings.SESSION_COOKIE_AGE,
        "cookie": {
            "name": settings.SESSION_COOKIE_NAME,
            "value": request.session.session_key,
            "domain": "127.0.0.1",
            "path": settings.SESSION_COOKIE_PATH,
            "expires": int(request.session.get_expiry_date().timestamp()),
            "httpOnly": True,
            "secure": False,
            "sameSite": "Lax",
        },
    }


@never_cache
@csrf_exempt
@require_POST
def issue(request):
    name = request.GET.get("user", "")
    # `isidentifier` keeps the name one plain word, safe to look for in a page.
    if not name.isidentifier() or len(name) > 150:
        return JsonResponse({"error": "user must be one word of at most 150 letters, digits and _"}, status=400)
    issued = issue_session(name)
    count("issued")
    return JsonResponse(issued)


@never_cache
@csrf_exempt
@require_POST
def end(request):
    """Delete every session of a user, as "sign out everywhere" does."""
    user = get_user_model().objects.filter(username=request.GET.get("user", "")).first()
    if user is None:
        return JsonResponse({"error": "no such user"}, status=404)
    rows = [row for row in Session.objects.all() if row.get_decoded().get("_auth_user_id") == str(user.pk)]
    for row in rows:
        row.delete()
    return JsonResponse({"ended": len(rows)})


def count_login(request, **_):
    # An issued session logs in too, on a request that never had a path.
    if request.path:
        count("logins")


user_logged_in.connect(count_login)

urlpatterns = [
    path("login/", LoginView.as_view(template_name="login.html")),
    path("account/", account),
    path("refresh/", refresh),
    path("keepalive/", keepalive),
    path("stats/", stats),
    path("test/issue/", issue),
    path("test/end/", end),
]


def end_with_parent():
    """End when stdin closes: a killed test run must leave nothing behind."""

    def watch():
        # `os.read`, not `sys.stdin`: a thread inside a buffered read would
        # abort the interpreter's shutdown.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # A person at a terminal has Ctrl-C, and a background job must not read it.
    if not os.isatty(0):
        threading.Thread(target=watch, daemon=True).start()


def main():
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    call_command("migrate", verbosity=0, interactive=False)
    if ARGUMENTS.issue is not None:
        print(json.dumps(issue_session(ARGUMENTS.issue)), flush=True)
        return

    from waitress import create_server

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server = create_server(get_wsgi_application(), host="127.0.0.1", port=ARGUMENTS.port, threads=4)
    except OSError as error:
        sys.exit(f"cannot listen on 127.0.0.1:{ARGUMENTS.port}: {error}")
    ready = {
        "ready": True,
        "url": f"http://127.0.0.1:{server.effective_port}",
        "pid": os.getpid(),
        "session_age": ARGUMENTS.session_age,
        "save_every_request": ARGUMENTS.save_every_request,
    }
    print(json.dumps(ready), flush=True)
    end_with_parent()
    server.run()


if __name__ == "__main__":
    main()
