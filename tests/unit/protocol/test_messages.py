"""Messages are built to the byte, and read only if every length in them is true."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol import messages
from pgshunt.protocol.errors import ClientProtocolError, ServerProtocolError
from pgshunt.protocol.messages import CancelRequest, GSSENCRequest, Parse, SSLRequest, StartupRequest
from pgshunt.protocol.phases import BACKEND_LOGIN, FRONTEND, Phase

TEXTS = st.binary(max_size=20).map(lambda text: text.replace(b"\0", b""))
NAMES = TEXTS.filter(bool)


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (messages.authentication_ok(), b"R\0\0\0\x08\0\0\0\0"),
        (messages.authentication_sasl([b"A", b"B"]), b"R\0\0\0\x0d\0\0\0\x0aA\0B\0\0"),
        (messages.authentication_sasl_continue(b"x"), b"R\0\0\0\x09\0\0\0\x0bx"),
        (messages.authentication_sasl_final(b"x"), b"R\0\0\0\x09\0\0\0\x0cx"),
        (messages.negotiate_protocol_version(0, [b"_pq_.a"]), b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.a\0"),
        (messages.parameter_status(b"a", b"b"), b"S\0\0\0\x08a\0b\0"),
        (messages.backend_key_data(1, b"keys"), b"K\0\0\0\x0c\0\0\0\1keys"),
        (messages.ready_for_query(b"I"), b"Z\0\0\0\5I"),
        (messages.command_complete(b"SELECT 1"), b"C\0\0\0\x0dSELECT 1\0"),
        (messages.parse_complete(), b"1\0\0\0\4"),
        (messages.bind_complete(), b"2\0\0\0\4"),
        (messages.close_complete(), b"3\0\0\0\4"),
        (messages.no_data(), b"n\0\0\0\4"),
        (messages.empty_query_response(), b"I\0\0\0\4"),
        (messages.parameter_description([23]), b"t\0\0\0\x0a\0\1\0\0\0\x17"),
        (messages.error_response("57P01", "m"), b"E\0\0\0\x1dSERROR\0VERROR\0C57P01\0Mm\0\0"),
        (messages.notice_response("m"), b"N\0\0\0\x1fSNOTICE\0VNOTICE\0C00000\0Mm\0\0"),
        (messages.startup_message({b"user": b"u"}, minor=2), b"\0\0\0\x10\0\3\0\2user\0u\0\0"),
        (messages.ssl_request(), b"\0\0\0\x08\x04\xd2\x16\x2f"),
        (messages.gssenc_request(), b"\0\0\0\x08\x04\xd2\x16\x30"),
        (messages.cancel_request(1, b"keys"), b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\1keys"),
        (messages.password_message(b"p"), b"p\0\0\0\6p\0"),
        (messages.sasl_initial_response(b"M", b"d"), b"p\0\0\0\x0bM\0\0\0\0\1d"),
        (messages.sasl_response(b"d"), b"p\0\0\0\5d"),
        (messages.query(b"SELECT 1"), b"Q\0\0\0\x0dSELECT 1\0"),
        (messages.parse(b"n", b"q", [23]), b"P\0\0\0\x0en\0q\0\0\1\0\0\0\x17"),
        (messages.close_statement(b"n"), b"C\0\0\0\7Sn\0"),
        (messages.sync(), b"S\0\0\0\4"),
        (messages.flush(), b"H\0\0\0\4"),
        (messages.terminate(), b"X\0\0\0\4"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_messages_are_built_to_the_byte(built: bytes, expected: bytes) -> None:
    assert built == expected


def test_what_a_peer_would_misread_is_not_built() -> None:
    for build in (
        lambda: messages.query(b"a\0b"),
        lambda: messages.parameter_status(b"a\0", b""),
        lambda: messages.startup_message({b"": b"x"}),
        lambda: messages.startup_message({b"user": b"u" * 10_000}),
        lambda: messages.cancel_request(1, b"key"),
        lambda: messages.backend_key_data(1, b"k" * 257),
    ):
        with pytest.raises(ValueError):
            build()


@given(st.dictionaries(NAMES, TEXTS, max_size=6), st.integers(0, 0xFFFF))
def test_a_startup_message_reads_as_it_was_built(parameters: dict[bytes, bytes], minor: int) -> None:
    request = messages.read_startup(messages.startup_message(parameters, minor)[4:])
    assert isinstance(request, StartupRequest)
    assert (request.major, request.minor) == (3, minor)
    assert request.parameters | request.protocol_options == parameters
    assert all(name.startswith(b"_pq_.") for name in request.protocol_options)


def test_requests_without_type_byte() -> None:
    assert messages.read_startup(messages.ssl_request()[4:]) == SSLRequest()
    assert messages.read_startup(messages.gssenc_request()[4:]) == GSSENCRequest()
    for length in (4, 32, 256):
        request = messages.cancel_request(2**32 - 1, b"k" * length)
        assert messages.read_startup(request[4:]) == CancelRequest(2**32 - 1, b"k" * length)


VERSION = struct.pack("!I", 3 << 16)


@pytest.mark.parametrize(
    "pairs",
    [
        b"",
        b"user",
        b"user\0",
        b"user\0\0",
        b"user\0x",
        b"user\0x\0",
        b"user\0x\0\0\0",
        b"user\0x\0\0more\0x\0\0",
        b"\0user\0x\0\0",
        b"user\0x\0odd\0\0",
    ],
)
def test_a_startup_packet_ends_with_its_terminator_and_nowhere_else(pairs: bytes) -> None:
    with pytest.raises(ClientProtocolError, match="expected terminator as last byte") as refusal:
        messages.read_startup(VERSION + pairs)
    assert refusal.value.sqlstate == "08P01"


def test_of_a_parameter_given_twice_the_last_counts_as_in_postgresql() -> None:
    request = messages.read_startup(VERSION + b"user\0a\0user\0b\0\0")
    assert request == StartupRequest(3, 0, {b"user": b"b"}, {})


def test_nothing_is_read_of_another_major_version() -> None:
    assert messages.read_startup(struct.pack("!I", 2 << 16) + b"\xff" * 9) == StartupRequest(2, 0, {}, {})


@pytest.mark.parametrize("key", [b"", b"key", b"k" * 257])
def test_cancel_keys_have_4_to_256_bytes(key: bytes) -> None:
    with pytest.raises(ClientProtocolError):
        messages.read_startup(struct.pack("!II", messages.CANCEL_REQUEST_CODE, 1) + key)
    with pytest.raises(ServerProtocolError):
        messages.read_backend_key_data(struct.pack("!I", 1) + key)


@given(NAMES, TEXTS, st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_a_parse_reads_as_it_was_built(name: bytes, sql: bytes, oids: list[int]) -> None:
    body = messages.parse(name, sql, oids)[5:]
    assert messages.read_parse(body) == Parse(name, sql, tuple(oids))
    for broken in (body[:-1], body + b"\0"):
        with pytest.raises(ClientProtocolError):
            messages.read_parse(broken)


@given(st.binary(max_size=64))
def test_readers_accept_or_raise_their_one_error(body: bytes) -> None:
    client = (messages.read_parse, messages.read_sasl_initial_response)
    server = (
        messages.read_authentication,
        messages.read_sasl_mechanisms,
        messages.read_parameter_status,
        messages.read_backend_key_data,
    )
    for reader in (*client, *server):
        try:
            reader(body)
        except ClientProtocolError:
            assert reader in client
        except ServerProtocolError:
            assert reader in server


@given(st.binary(min_size=4, max_size=64))
def test_any_first_packet_is_read_or_refused(body: bytes) -> None:
    try:
        messages.read_startup(body)
    except ClientProtocolError as refusal:
        assert refusal.sqlstate == "08P01"


@pytest.mark.parametrize(
    ("rest", "data"), [(b"\0\0\0\1d", b"d"), (b"\0\0\0\0", b""), (b"\xff\xff\xff\xff", None)]
)
def test_a_sasl_initial_response_may_lack_its_data(rest: bytes, data: bytes | None) -> None:
    assert messages.read_sasl_initial_response(b"M\0" + rest) == (b"M", data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"M",
        b"M\0",
        b"M\0\0\0\0",
        b"M\0\0\0\0\2d",
        b"M\0\0\0\0\1dd",
        b"M\0\xff\xff\xff\xffd",
        b"M\0\xff\xff\xff\xfed",
    ],
)
def test_a_sasl_initial_response_keeps_its_word_about_length(body: bytes) -> None:
    with pytest.raises(ClientProtocolError):
        messages.read_sasl_initial_response(body)


def test_every_bound_can_be_met() -> None:
    for row in (*FRONTEND.values(), BACKEND_LOGIN):
        for kind, bounds in row.items():
            assert 0 < kind < 128
            assert 0 <= bounds.body_bytes_min <= bounds.body_bytes_max <= 0x3FFFFFFE


def test_builders_respect_the_table() -> None:
    smallest = {
        messages.query(b""): Phase.READY,
        messages.parse(b"", b""): Phase.READY,
        messages.close_statement(b""): Phase.READY,
        messages.sync(): Phase.READY,
        messages.flush(): Phase.READY,
        messages.terminate(): Phase.READY,
        messages.password_message(b""): Phase.AUTHENTICATION,
        messages.sasl_response(b""): Phase.SASL,
    }
    for message, phase in smallest.items():
        assert FRONTEND[phase][message[0]].body_bytes_min == len(message) - 5
