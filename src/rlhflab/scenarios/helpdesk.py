"""The scenario `helpdesk`: an internal copilot answers from a short note, and says so when the note does not."""

from rlhflab.scenarios.families import HELPDESK_FAMILIES
from rlhflab.scenarios.note_scenario import NoteScenario

HELPDESK = NoteScenario(
    name="helpdesk",
    about="rooms, people, dates, prices, software and rules of an office",
    families=HELPDESK_FAMILIES,
)
