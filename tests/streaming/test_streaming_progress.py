"""What may be committed: only the contiguous acknowledged prefix of each partition."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.streaming.progress import Progress, Ticket

A, B = TopicPartition("logits", 0), TopicPartition("logits", 1)


def ticket(
    next_offset: int, records: int = 1, size: int = 10, begun_at: float = 0.0, where: TopicPartition = A
) -> Ticket:
    return Ticket(where, next_offset, records, size, begun_at)


class ProgressMachine(RuleBasedStateMachine):
    """Progress against a model: lists of tickets, each done or not, by partition."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress()
        self.next_offset: defaultdict[TopicPartition, int] = defaultdict(int)
        self.under_way: dict[TopicPartition, list[Ticket]] = {A: [], B: []}
        self.lost: list[Ticket] = []
        self.position: dict[TopicPartition, int] = {}
        self.stored: dict[TopicPartition, int] = {}

    partitions = st.sampled_from([A, B])

    @rule(where=partitions, records=st.integers(1, 50), size=st.integers(0, 1000))
    def begin(self, where: TopicPartition, records: int, size: int) -> None:
        start = self.next_offset[where]
        self.progress.take(where, start, start, 0)
        self.position.setdefault(where, start)
        self.next_offset[where] = start + records
        fresh = Ticket(where, start + records, records, size, float(start))
        self.progress.begin(fresh)
        self.under_way[where].append(fresh)

    @precondition(lambda self: any(self.under_way.values()))
    @rule(data=st.data())
    def finish_any(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([t for queue in self.under_way.values() for t in queue]))
        self.progress.finish(chosen)
        queue = self.under_way[chosen.partition]
        chosen.done = True
        while queue and queue[0].done:
            self.position[chosen.partition] = queue.pop(0).next_offset

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def finish_late(self, data: st.DataObject) -> None:
        """A late finish of a ticket that was given up changes nothing: the model is left alone."""
        self.progress.finish(data.draw(st.sampled_from(self.lost)))

    @rule()
    def commit(self) -> None:
        offsets = self.progress.committable()
        self.progress.committed(offsets)
        self.stored.update(offsets)
        assert self.progress.committable() == {}

    @rule(where=partitions, skipped=st.integers(0, 100))
    def jump(self, where: TopicPartition, skipped: int) -> None:
        self._lose(where)
        self.next_offset[where] += skipped
        self.progress.jump(where, self.next_offset[where])
        self.position[where] = self.next_offset[where]

    @rule()
    def give_up(self) -> None:
        """The service goes back to the acknowledged prefix and reads on from there."""
        self.progress.give_up()
        for where in (A, B):
            self._lose(where)
            self.next_offset[where] = self.position.get(where, self.next_offset[where])

    @rule()
    def forget(self) -> None:
        self.progress.forget()
        for where in (A, B):
            self._lose(where)
            self.next_offset[where] = self.position.get(where, self.next_offset[where])
        self.position.clear()
        self.stored.clear()

    def _lose(self, where: TopicPartition) -> None:
        self.lost += [t for t in self.under_way[where] if not t.done]
        self.under_way[where].clear()

    @invariant()
    def the_position_is_the_contiguous_acknowledged_prefix(self) -> None:
        assert {w: self.progress.position(w) for w in (A, B)} == {w: self.position.get(w) for w in (A, B)}

    @invariant()
    def committable_is_what_has_moved_since_the_last_commit(self) -> None:
        moved = {w: offset for w, offset in self.position.items() if self.stored.get(w) != offset}
        assert self.progress.committable() == moved

    @invariant()
    def counts_are_those_of_what_is_under_way_and_never_negative(self) -> None:
        waiting = [t for queue in self.under_way.values() for t in queue]
        assert self.progress.records == sum(t.records for t in waiting) >= 0
        assert self.progress.size == sum(t.size for t in waiting) >= 0

    @invariant()
    def the_oldest_is_at_the_head_of_a_partition(self) -> None:
        heads = [queue[0] for queue in self.under_way.values() if queue]
        oldest = self.progress.oldest()
        assert (oldest is None) == (not heads)
        if oldest is not None:
            assert oldest in heads
            assert oldest.begun_at == min(t.begun_at for t in heads)


ProgressMachine.TestCase.settings = hypothesis_settings(deadline=None, max_examples=60, stateful_step_count=40)
TestProgressAgainstItsModel: Final = ProgressMachine.TestCase


@given(st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))))
def test_tickets_finished_in_any_order_move_the_prefix_only_as_far_as_all_are_done(order: list[int]) -> None:
    progress = Progress()
    progress.take(A, 0, 0, 0)
    tickets = [ticket((number + 1) * 5, records=5, size=7) for number in range(len(order))]
    for each in tickets:
        progress.begin(each)
    finished: set[int] = set()
    for number in order:
        progress.finish(tickets[number])
        finished.add(number)
        prefix = next(n for n in range(len(order) + 1) if n not in finished)
        assert progress.position(A) == prefix * 5
        assert progress.records == (len(order) - prefix) * 5
        assert progress.size == (len(order) - prefix) * 7
    assert (progress.records, progress.size, progress.oldest()) == (0, 0, None)


def test_a_hole_in_one_partition_does_not_hold_another_back() -> None:
    progress = Progress()
    progress.begin(ticket(1, where=A))
    other = ticket(9, where=B)
    progress.begin(other)
    progress.finish(other)
    assert progress.committable() == {B: 9}


def test_taking_says_where_reading_begins_and_only_once() -> None:
    progress = Progress()
    progress.take(A, 7, 7, 0)
    progress.take(A, 100, 100, 0)
    assert progress.position(A) == 7
    assert progress.committable() == {A: 7}  # a first commit, so that lag can be seen


def test_taking_does_not_undo_what_was_acknowledged() -> None:
    progress = Progress()
    first = ticket(5)
    progress.begin(first)
    progress.finish(first)
    progress.take(A, 0, 0, 0)
    assert progress.position(A) == 5


def test_a_jump_replaces_the_position_and_leaves_nothing_under_way() -> None:
    progress = Progress()
    early = ticket(5, records=5, size=50)
    progress.begin(early)
    progress.jump(A, 40)
    assert progress.position(A) == 40
    assert (progress.records, progress.size, progress.oldest()) == (0, 0, None)
    progress.finish(early)
    assert progress.position(A) == 40
    assert (progress.records, progress.size) == (0, 0)


def test_a_jump_leaves_other_partitions_alone() -> None:
    progress = Progress()
    other = ticket(3, records=3, size=30, where=B)
    progress.begin(other)
    progress.jump(A, 40)
    assert (progress.records, progress.size, progress.oldest()) == (3, 30, other)


def test_a_jump_back_is_committed_too() -> None:
    progress = Progress()
    progress.take(A, 50, 50, 0)
    progress.committed({A: 50})
    progress.jump(A, 10)
    assert progress.committable() == {A: 10}


def test_giving_up_keeps_the_acknowledged_prefix_and_a_late_finish_changes_nothing() -> None:
    progress = Progress()
    tickets = [ticket(5), ticket(10), ticket(15)]
    for each in tickets:
        progress.begin(each)
    progress.finish(tickets[0])
    progress.finish(tickets[2])
    progress.give_up()
    assert (progress.position(A), progress.records, progress.size) == (5, 0, 0)
    again = ticket(10)
    progress.begin(again)
    progress.finish(tickets[1])
    assert (progress.position(A), progress.records, progress.oldest()) == (5, 1, again)
    progress.finish(again)
    assert progress.position(A) == 10


def test_a_ticket_finished_twice_counts_once() -> None:
    progress = Progress()
    first, second = ticket(1), ticket(2)
    progress.begin(first)
    progress.begin(second)
    progress.finish(first)
    progress.finish(first)
    assert (progress.position(A), progress.records, progress.size) == (1, 1, 10)


def test_forgotten_partitions_have_no_position_and_begin_anew_when_they_come_back() -> None:
    progress = Progress()
    progress.take(A, 5, 5, 0)
    progress.take(B, 6, 6, 0)
    progress.committed(progress.committable())
    progress.forget()
    assert progress.position(A) is None
    assert progress.position(B) is None
    progress.take(A, 5, 5, 0)
    assert progress.committable() == {A: 5}


def test_forgetting_gives_up_what_is_under_way_everywhere() -> None:
    progress = Progress()
    kept = ticket(5, where=B)
    progress.begin(kept)
    progress.forget()
    assert (progress.records, progress.size, progress.oldest()) == (0, 0, None)
    progress.finish(kept)
    assert progress.position(B) is None


def test_the_oldest_is_the_one_under_way_for_longest_over_all_partitions() -> None:
    progress = Progress()
    newer, older = ticket(1, begun_at=2.0, where=A), ticket(1, begun_at=1.0, where=B)
    progress.begin(newer)
    progress.begin(older)
    assert progress.oldest() is older
    progress.finish(older)
    assert progress.oldest() is newer


def test_what_the_consumer_passed_silently_is_done_once_all_before_it_is() -> None:
    """Markers behind undelivered records wait; behind delivered ones they are progress."""
    progress = Progress()
    progress.take(A, 0, 10, 99)
    progress.pass_over(A, 12)
    assert progress.position(A) == 0
    ticket = Ticket(A, 10, 10, 1, 0.0)
    progress.begin(ticket)
    progress.pass_over(A, 12)
    assert progress.position(A) == 0
    progress.finish(ticket)
    progress.pass_over(A, 12)
    assert (progress.position(A), progress.committable()) == (12, {A: 12})
    progress.pass_over(A, 11)
    assert progress.position(A) == 12
    assert progress.last_timestamp(A) == 99


def test_a_partition_from_which_nothing_was_taken_is_where_the_consumer_stands() -> None:
    progress = Progress()
    progress.pass_over(A, 7)
    assert (progress.position(A), progress.last_timestamp(A)) == (7, 0)
    progress.take(A, 7, 9, 5)
    progress.give_up()
    progress.pass_over(A, 9)
    assert progress.position(A) == 7
