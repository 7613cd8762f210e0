"""The scenario `release_notes`: the same task about the releases of an API. Never trained on: it measures transfer.

Kinds are its own, so that no value is shared with `helpdesk`; the text was written by this project.
"""

from rlhflab.scenarios.families import NUMBER
from rlhflab.scenarios.note_scenario import NoteScenario
from rlhflab.scenarios.notes import Family, Kind

_ENDPOINTS = ("the search endpoint", "the export endpoint", "the login endpoint", "the upload endpoint",
              "the report endpoint", "the webhook endpoint", "the billing endpoint", "the audit endpoint",
              "the refund endpoint", "the avatar endpoint", "the comment endpoint", "the tagging endpoint",
              "the geocoding endpoint", "the preview endpoint", "the consent endpoint", "the rollback endpoint")
_CLIENTS = ("the Python client", "the Java client", "the Go client", "the Ruby client",
            "the Rust client", "the Swift client", "the Kotlin client", "the shell client",
            "the Perl client", "the Scala client", "the Elixir client", "the Dart client",
            "the Julia client", "the Lua client", "the Haskell client", "the Erlang client")
_FIELDS = ("the user record", "the invoice record", "the order record", "the event record",
           "the device record", "the team record", "the token record", "the address record",
           "the payment record", "the ticket record", "the product record", "the coupon record",
           "the shipment record", "the vendor record", "the licence record", "the campaign record")

RELEASE = Kind(name="release", pattern=r"\d+(?:\.\d+)+", values=tuple(
    f"{major}.{minor}" for major in (6, 7, 8, 9) for minor in (1, 3, 5, 6, 8, 9, 11, 12)))
SECONDS = Kind(name="seconds", pattern=r"\d+ seconds?", values=tuple(f"{n} seconds" for n in range(4, 100, 3)))
RATE = Kind(name="rate", pattern=NUMBER, values=tuple(str(n) for n in range(450, 2250, 45)))
STATUS = Kind(name="status", pattern=NUMBER, values=tuple(str(n) for n in (*range(201, 209), *range(402, 430))))
QUARTER = Kind(name="quarter", values=tuple(
    f"{month} {year}" for year in (2027, 2028, 2029) for month in ("January", "March", "May", "July", "October")),
    pattern=r"(?:january|march|may|july|october) \d{4}")
REPLACEMENT = Kind(name="replacement", values=tuple(
    f"{verb}_{noun}" for verb in ("fetch", "merge", "stream", "patch") for noun in (
        "batch", "ledger", "session", "quota", "bucket", "schema")))
MAINTAINER = Kind(name="maintainer", values=(
    "Greta Sorensen", "Tariq Aziz", "Bianca Moretti", "Wei Zhang", "Ola Kowalski", "Sunita Rao", "Emil Lund",
    "Chidi Eze", "Irina Volkova", "Pablo Vega", "Maeve Byrne", "Tuan Pham", "Dalia Cohen", "Rory Campbell",
    "Selma Aydin", "Nils Fischer"))
LANGUAGE = Kind(name="format", values=(
    "Avro", "Parquet", "Protobuf", "Thrift", "MessagePack", "Arrow", "Turtle", "Markdown", "Bencode", "Smile",
    "Cbor", "Toml", "Yaml", "Ndjson", "Geojson", "Netcdf"))

RELEASE_NOTES_FAMILIES = (
    Family(name="removal", kind=RELEASE, entities=_ENDPOINTS, statements=(
        "{E} was removed in release {v}.", "{E} is gone since release {v}.", "Release {v} drops {e}.",
        "We took {e} out in release {v}.", "The release that removed {e} is {v}."), questions=(
        "In which release was {e} removed?", "Since which release is {e} gone?", "Which release drops {e}?",
        "In which release did we take {e} out?", "What release removed {e}?")),
    Family(name="timeout", kind=SECONDS, entities=_ENDPOINTS, statements=(
        "{E} times out after {v}.", "{E} now waits for {v}.", "The timeout of {e} is {v}.",
        "Calls to {e} end after {v}.", "Requests to {e} may run for {v}."), questions=(
        "After how long does {e} time out?", "How long does {e} wait now?", "What is the timeout of {e}?",
        "After what time do calls to {e} end?", "How long may requests to {e} run?")),
    Family(name="rate limit", kind=RATE, entities=_ENDPOINTS, statements=(
        "{E} allows {v} calls an hour.", "You may call {e} {v} times an hour.",
        "The hourly limit of {e} is {v} calls.", "{E} is limited to {v} calls an hour.",
        "{E} accepts {v} calls an hour."), questions=(
        "How many calls an hour does {e} allow?", "How often may you call {e} an hour?",
        "What is the hourly limit of {e}?", "To how many calls an hour is {e} limited?",
        "How many calls an hour does {e} accept?")),
    Family(name="status", kind=STATUS, entities=_ENDPOINTS, statements=(
        "{E} now answers with status {v}.", "{E} returns code {v} on a conflict.", "The status of {e} changed to {v}.",
        "A conflict at {e} gives code {v}.", "{E} replies with status {v}."), questions=(
        "With which status does {e} answer now?", "Which code does {e} return on a conflict?",
        "To what did the status of {e} change?", "Which code does a conflict at {e} give?",
        "With which status does {e} reply?")),
    Family(name="end of support", kind=QUARTER, entities=_CLIENTS, statements=(
        "Support for {e} ends in {v}.", "{E} gets fixes until {v}.", "{E} is supported up to {v}.",
        "We stop fixing {e} in {v}.", "The support of {e} runs until {v}."), questions=(
        "When does support for {e} end?", "Until when does {e} get fixes?", "Up to when is {e} supported?",
        "When do we stop fixing {e}?", "Until when does the support of {e} run?")),
    Family(name="maintainer", kind=MAINTAINER, entities=_CLIENTS, statements=(
        "{v} maintains {e}.", "The maintainer of {e} is {v}.", "{E} is now maintained by {v}.",
        "{v} took over {e}.", "{v} reviews changes to {e}."), questions=(
        "Who maintains {e}?", "Who is the maintainer of {e}?", "By whom is {e} maintained now?",
        "Who took over {e}?", "Who reviews changes to {e}?")),
    Family(name="replacement", kind=REPLACEMENT, entities=_FIELDS, statements=(
        "Use {v} to read {e}.", "The new call for {e} is {v}.", "To load {e} call {v}.",
        "The call that returns {e} is {v}.", "Read {e} with {v}."), questions=(
        "Which call reads {e}?", "What is the new call for {e}?", "What do I call to load {e}?",
        "Which call returns {e}?", "With which call do I read {e}?")),
    Family(name="format", kind=LANGUAGE, entities=_FIELDS, statements=(
        "{E} is now sent as {v}.", "The format of {e} is {v}.", "We encode {e} in {v}.",
        "{E} arrives in the format {v}.", "{E} is stored as {v}."), questions=(
        "As what is {e} sent now?", "What is the format of {e}?", "How do we encode {e}?",
        "In which format does {e} arrive?", "As what is {e} stored?")),
)

RELEASE_NOTES = NoteScenario(
    name="release_notes",
    about="the releases of an API: endpoints, clients and records",
    families=RELEASE_NOTES_FAMILIES,
)
