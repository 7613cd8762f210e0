"""Where the boxes of a lineage graph stand."""

from desk_folders import BASE, lineage_registry
from rlhflab.app.lineage import ACROSS, DOWN, EDGE, HEIGHT, WIDTH, base_of, lineage
from rlhflab.registry.records import WEIGHTS, Adapter, BaseFacts, Provenance
from rlhflab.registry.state import State


def adapter(digest, *, parents=(), base=BASE):
    return Adapter(digest=digest, name=digest, files={WEIGHTS: digest}, base=base, rank=4, alpha=8, head=False,
                   made=Provenance(parents=parents))


def graph_of(*adapters):
    return lineage(State(adapters={each.digest: each for each in adapters}))


def columns(graph):
    """Names by column, from the left."""
    found = {}
    for box in graph.boxes:
        found.setdefault((box.x - EDGE) / (WIDTH + ACROSS), set()).add(box.name)
    return [found[column] for column in sorted(found)]


def test_what_was_made_stands_to_the_right_of_what_it_was_made_of(tmp_path):
    graph = lineage(lineage_registry(tmp_path).state())
    assert columns(graph) == [{"smollm2-135m"}, {"sft", "old"}, {"dpo", "ppo"}, {"merged"}]
    assert [box.active for box in graph.boxes if box.active] == [("prod",)]
    assert (graph.width, graph.height) == (2 * EDGE + 4 * WIDTH + 3 * ACROSS, 2 * EDGE + 2 * HEIGHT + DOWN)


def test_no_two_boxes_stand_on_each_other():
    graph = graph_of(*(adapter(f"a{n}") for n in range(9)), adapter("b", parents=("a0", "a8")))
    assert len({(box.x, box.y) for box in graph.boxes}) == 11


def test_a_line_to_what_is_only_guessed_is_marked():
    graph = graph_of(adapter("known"), adapter("guessed", parents=None))
    assert sorted(line.known for line in graph.lines) == [False, True]


def test_a_parent_that_is_not_in_the_registry_has_a_box_of_its_own():
    graph = graph_of(adapter("one", parents=("f" * 64,)))
    assert [(box.kind, box.name) for box in graph.boxes if box.kind == "missing"] == [("missing", "f" * 12)]
    assert columns(graph) == [{"smollm2-135m", "f" * 12}, {"one"}]


def test_a_parent_that_was_added_later_is_still_to_the_left():
    assert columns(graph_of(adapter("child", parents=("late",)), adapter("late"))) == [
        {"smollm2-135m"}, {"late"}, {"child"}]


def test_a_circle_is_drawn_all_the_same():
    graph = graph_of(adapter("one", parents=("two",)), adapter("two", parents=("one",)), adapter("me", parents=("me",)))
    assert {box.name for box in graph.boxes} == {"smollm2-135m", "one", "two", "me"} and len(graph.lines) == 3


def test_two_bases_of_one_name_are_two_where_their_weights_differ():
    other = BaseFacts(name=BASE.name, digest="c" * 64)
    assert base_of(adapter("a")) != base_of(adapter("b", base=other))
    assert len([box for box in graph_of(adapter("a"), adapter("b", base=other)).boxes if box.kind == "base"]) == 2


def test_an_empty_registry_is_an_empty_drawing():
    assert (graph_of().boxes, graph_of().lines) == ([], [])
