"""The board is one memory for all processes, and its sums say where the next client should go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pgshunt.proxy.board import ALIVE_NS_MAX, Board

NOW = 10 * ALIVE_NS_MAX


def live_board(workers: int) -> Board:
    board = Board(None, workers=workers, endpoints=3)
    for worker in range(workers):
        board.alive[worker] = NOW
    return board


def test_a_new_board_is_all_zero_and_has_the_asked_dimensions() -> None:
    board = Board(None, workers=3, endpoints=5)
    assert list(board.freshness) == [0] * 5
    assert [list(board.handed(worker)) for worker in range(3)] == [[0] * 3] * 3
    assert board.clients_total() == 0


def test_another_process_sees_what_is_written() -> None:
    board = Board(None, workers=2, endpoints=4)
    board.freshness[3] = 123_456_789_012_345
    code = (
        "import sys; from pgshunt.proxy.board import Board\n"
        "board = Board(int(sys.argv[1]), workers=2, endpoints=4)\n"
        "board.clients[1] = board.freshness[3] + 1; board.handed(1)[0] = 7"
    )
    subprocess.run([sys.executable, "-c", code, str(board.fd)], pass_fds=[board.fd], check=True)
    assert board.clients[1] == 123_456_789_012_346
    assert list(board.handed(1)) == [7, 0]
    assert list(board.handed(0)) == [0, 0]


def test_no_two_cells_share_memory() -> None:
    board = Board(None, workers=3, endpoints=9, services=4)
    views = [board.freshness, board.clients, board.received, board.alive, board.definitions]
    views += [board.withheld, board.writes]
    assert len(board.writes) == 3 * (1 + 4) == 3 * board.services
    views += [board.handed(worker) for worker in range(3)]
    number = 0
    for view in views:
        for cell in range(len(view)):
            number += 1
            view[cell] = number
    assert [cell for view in views for cell in view] == list(range(1, number + 1))


def test_a_board_of_other_dimensions_is_refused() -> None:
    board = Board(None, workers=2, endpoints=4)
    with pytest.raises(ValueError, match="expected"):
        Board(os.dup(board.fd), workers=20, endpoints=4)


def test_a_socket_in_flight_counts_for_the_worker_it_goes_to() -> None:
    board = live_board(3)
    board.clients[0] = 5
    board.handed(0)[1] = 4
    board.handed(2)[1] = 3
    board.received[1] = 2
    assert board.load(1) == 5
    assert board.clients_total() == 10


def test_a_successor_that_received_more_than_was_counted_is_not_less_than_empty() -> None:
    board = live_board(2)
    board.received[1] = 3
    assert board.load(1) == 0


@pytest.mark.parametrize(
    ("clients", "own", "chosen"),
    [((5, 3, 4), 0, 1), ((3, 3, 3), 2, 2), ((2, 3, 3), 0, 0), ((1, 0, 0), 0, 1)],
    ids=["fewest", "own when equal", "own when fewest", "first of equals"],
)
def test_the_least_loaded_worker_is_chosen(clients: tuple[int, ...], own: int, chosen: int) -> None:
    board = live_board(3)
    for worker, count in enumerate(clients):
        board.clients[worker] = count
    assert board.least_loaded(own, NOW) == chosen


def test_a_worker_that_stopped_ticking_gets_no_clients() -> None:
    board = live_board(2)
    board.clients[0] = 100
    board.alive[1] = NOW - ALIVE_NS_MAX
    assert board.least_loaded(0, NOW) == 0


def test_the_cells_of_an_ended_worker_are_cleared() -> None:
    board = live_board(2)
    board.clients[1] = 9
    board.vacate(1)
    assert (board.clients[1], board.alive[1]) == (0, 0)


def test_a_closed_board_gives_its_descriptor_back() -> None:
    board = Board(None, workers=2, endpoints=2)
    board.close()
    with pytest.raises(OSError):
        os.fstat(board.fd)


def test_sessions_of_a_limited_user_are_counted_over_all_workers() -> None:
    board = Board(None, workers=3, endpoints=1, users=2)
    assert [board.sessions_add(worker, 1, 1) for worker in range(3)] == [1, 2, 3]
    assert board.sessions_add(0, 0, 1) == 1
    board.vacate(2)
    assert board.sessions_add(0, 1, -1) == 1
