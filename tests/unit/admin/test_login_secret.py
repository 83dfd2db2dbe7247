"""The secret behind the salts of users who do not exist outlives the process, and is nobody else's."""

from __future__ import annotations

from pathlib import Path

from pgshunt.admin.login_secret import SECRET_BYTES, login_secret


def test_it_is_made_once_and_kept_private(tmp_path: Path) -> None:
    file = tmp_path / "pgshunt.state.secret"
    secret = login_secret(file)
    assert len(secret) == SECRET_BYTES and login_secret(file) == secret
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_torn_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"short")
    assert len(login_secret(file)) == SECRET_BYTES


def test_two_proxies_have_two(tmp_path: Path) -> None:
    assert login_secret(tmp_path / "a") != login_secret(tmp_path / "b")
