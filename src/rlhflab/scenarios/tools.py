"""What the manuals of the scenario `devtools` are made of. Data only, made up for this project: no such tools exist.

Every list is dealt to the splits in order (`splits.owned`): no tool, option, file, value or wording is in two of them.
"""

from dataclasses import dataclass

from rlhflab.scenarios.notes import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a tool."""

    name: str
    """The long name, with its dashes."""
    does: str
    """What it does, as a verb phrase; `{}` is its argument."""
    argument: str = ""
    """What the manual calls the argument; empty for a flag."""
    kind: Kind | None = None
    """Values of the argument."""


def _lines(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COUNT = Kind(name="count", pattern=r"\d+(?:[.,:]\d+)*", values=tuple(str(n) for n in range(2, 98)))
FORMAT = Kind(name="format", values=_words(
    "csv tsv json yaml toml xml html markdown latex parquet avro ini sqlite plist protobuf msgpack"))
COLOUR = Kind(name="colour", values=_words(
    "red green blue cyan magenta yellow white black grey orange purple brown pink teal navy olive"))
COLUMN = Kind(name="column", values=_words(
    "price owner city weight score height country status author region width speed grade supplier branch channel"))
TARGET = Kind(name="target", values=_words(
    "result.txt report.txt summary.txt found.txt build.txt table.txt graph.txt trace.txt dump.txt index.txt state.txt "
    "draft.txt cache.txt audit.txt plan.txt merge.txt"))
_KINDS = {kind.name: kind for kind in (COUNT, FORMAT, COLOUR, COLUMN, TARGET)}

FLAGS = tuple(Option(name=f"--{name}", does=does) for name, does in _lines("""
    quiet | print no progress
    recursive | look into every folder below
    dry-run | show what it would do
    backup | keep a copy of each old file
    force | replace files without asking
    follow | go through symbolic links
    ignore-case | treat capitals as small letters
    strict | stop at the first warning
    hidden | include files that begin with a dot
    verify | compare checksums afterwards
    reverse | list the last lines first
    trim | cut blanks at the end of lines
    number | put line numbers in front
    unique | drop repeated lines
    append | add to the end of the output
    summary | print totals alone
    keep-going | carry on after an error
    absolute | print full paths
    skip-empty | leave out empty files
    mirror | delete what the source lacks
    timestamps | write the time beside each line
    offline | use no network
    compress | pack the output
    portable | avoid features of one system
    resume | go on where it was interrupted
    no-header | leave out the first row
    squeeze | join blank lines into one
    shuffle | mix the lines at random
    preserve | keep owner and mode of files
    explain | say why a file was chosen
    watch | run again whenever a file changes
    atomic | write all files or none
    count-only | print nothing but the number of hits
    wide | use the whole width of the screen
    encrypt | lock the output with a key
    literal | take patterns as plain text
    invert | select lines that do not match
    prune | remove folders without files
    ascii | escape every foreign letter
    interactive | ask before each step
    """))
VALUED = tuple(Option(name=f"--{name}", does=does, argument=argument, kind=_KINDS[kind])
               for name, argument, kind, does in _lines("""
    depth | N | count | search {} levels deep
    jobs | N | count | start {} workers
    output | FILE | target | write the result to {}
    context | N | count | show {} lines around each hit
    format | NAME | format | print the result as {}
    retries | N | count | try {} times before it fails
    colour | NAME | colour | paint hits in {}
    sort-by | COLUMN | column | order rows by {}
    timeout | SECONDS | count | give up after {} seconds
    limit | N | count | stop after {} results
    log | FILE | target | record messages in {}
    indent | N | count | indent by {} blanks
    read-as | NAME | format | read the input as {}
    chunk | MB | count | split the work into parts of {} megabytes
    theme | NAME | colour | draw the frame in {}
    group-by | COLUMN | column | put rows together by {}
    min-size | KB | count | skip files under {} kilobytes
    columns | N | count | wrap lines at {} letters
    errors-to | FILE | target | send warnings to {}
    head | N | count | read {} rows at most
    export | NAME | format | save a second copy as {}
    sample | N | count | draw {} rows at random
    mark | NAME | colour | underline changes in {}
    sum | COLUMN | column | add up the values of {}
    delay | SECONDS | count | wait {} seconds between requests
    digits | N | count | round to {} places
    list-to | FILE | target | store the names it saw in {}
    batch | N | count | send {} records at once
    template | NAME | format | build the page from {}
    level | N | count | pack at strength {}
    accent | NAME | colour | show headings in {}
    split-by | COLUMN | column | make one file for each {}
    max-age | DAYS | count | forget entries older than {} days
    keep | N | count | keep {} old versions
    stats | FILE | target | put measurements into {}
    buffer | KB | count | hold {} kilobytes in memory
    convert | NAME | format | turn attachments into {}
    window | N | count | average over {} points
    tint | NAME | colour | shade the background {}
    unique-by | COLUMN | column | keep one row for each {}
    """))
TOOLS = _words(
    "gribbet lopsy siftra munchet pladder quillo brambix tolvane snargle wexford-ls dandrel pokset frindle hobnail "
    "zindex-ls crumpet vorlog tansel mibbet garlune shuntle pebblix orlate drunnel kestrix bollard-ls nimsy wranget "
    "foldro skellet jostle umberly")
FILES = _words(
    "notes.md orders.dat people.lst server.log photos.idx lines.raw words.lst books.dat ships.raw rooms.idx trains.log "
    "seeds.dat tides.raw coins.lst stars.idx rivers.dat maps.raw teams.lst songs.idx games.log bridges.dat roads.raw "
    "trees.lst clouds.log")
ASK_OPTION = (
    "Which option makes {t} {p}?",
    "What option tells {t} to {p}?",
    "Which switch has {t} {p}?",
    "With which option does {t} {p}?",
    "Which flag do I pass so that {t} will {p}?",
    "What do I add to have {t} {p}?",
    "By which option is {t} told to {p}?",
    "Which flag lets {t} {p}?",
)
ASK_DEFAULT = (
    "What is the default of {o}?",
    "Which value does {o} have if it is not given?",
    "What is {o} set to by default?",
    "Which value applies without {o}?",
    "What does {t} take for {o} by default?",
    "If I leave {o} out, which value is used?",
    "Which default has {o}?",
    "What is the usual value of {o}?",
)
ASK_COMMAND = (
    "Give the command that makes {t} {p}, for the file {f}.",
    "How do I run {t} on {f} so that it will {p}?",
    "Write the command to have {t} {p}, with the file {f}.",
    "Show the command line that lets {t} {p}, on {f}.",
    "Which command tells {t} to {p}, for {f}?",
    "What do I type to have {t} {p}, for {f}?",
    "With which command line will {t} {p}, given {f}?",
    "What is the command to let {t} {p}, with {f}?",
)
