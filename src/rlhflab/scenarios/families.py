"""The facts of the scenario `helpdesk`: what an internal copilot is asked about. Data only, written by this project.

Every list is dealt to the splits in order (`notes.owned`), so no entity, value or phrasing is in two splits.
"""

from rlhflab.scenarios.notes import Family, Kind

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split("|"))


TIME = r"\d{1,2}(?::\d\d)? [ap]m"
NUMBER = r"\d+(?:[.,:]\d+)*"

MORNING = Kind(name="morning", pattern=TIME, values=tuple(
    f"{hour}{minute} am" for hour in range(5, 12) for minute in ("", ":15", ":30", ":45")))
EVENING = Kind(name="evening", pattern=TIME, values=tuple(
    f"{hour}{minute} pm" for hour in range(3, 12) for minute in ("", ":15", ":30", ":45")))
FLOOR = Kind(name="floor", pattern=NUMBER, values=tuple(str(n) for n in range(2, 42)))
SEATS = Kind(name="seats", pattern=NUMBER, values=tuple(str(n) for n in range(46, 98, 2)))
EXTENSION = Kind(name="extension", pattern=NUMBER, values=tuple(str(2000 + 83 * n) for n in range(48)))
DATE = Kind(name="date", pattern=rf"\d{{1,2}} (?:{'|'.join(_MONTHS).lower()})", values=tuple(
    f"{day} {month}" for month in _MONTHS for day in (4, 11, 18, 26)))
VERSION = Kind(name="version", pattern=r"\d+(?:\.\d+)+", values=tuple(
    f"{major}.{minor}.{patch}" for major in (1, 2, 3, 5) for minor in (0, 2, 4, 7) for patch in (1, 3, 8)))
PRICE = Kind(name="price", pattern=r"\$ \d+(?:[.,]\d+)*", values=tuple(
    f"${euros}{cents}" for euros in (3, 4, 6, 7, 9, 12, 15, 18, 24, 35) for cents in ("", ".25", ".50", ".90")))
DAYS = Kind(name="days", pattern=r"\d+ days?", values=tuple(f"{n} days" for n in range(5, 130, 4)))
MINUTES = Kind(name="minutes", pattern=r"\d+ minutes?", values=tuple(f"{n} minutes" for n in range(10, 130, 5)))
PERCENT = Kind(name="percent", pattern=r"\d+(?:\.\d+)? %", values=tuple(f"{n}%" for n in range(3, 99, 4)))
SIZE = Kind(name="size", pattern=r"\d+(?:\.\d+)? (?:mb|gb)", values=tuple(f"{n} MB" for n in range(15, 600, 20)))
PERSON = Kind(name="person", values=_items(
    "Priya Nair|Tomas Weber|Amara Okafor|Lucia Romano|Kenji Mori|Sofia Lindgren|Omar Haddad|Elena Petrova|"
    "Daniel Osei|Mei Chen|Ravi Kapoor|Hanna Virtanen|Diego Torres|Fatima Zahra|Lars Nilsson|Nadia Rahman|"
    "Paulo Mendes|Ingrid Bauer|Samuel Adeyemi|Yuki Tanaka|Clara Dubois|Ivan Horvat|Leila Karimi|Marco Rinaldi|"
    "Aisha Bello|Peter Novak|Rosa Delgado|Jonas Keller|Thandi Mokoena|Erik Dahl|Zeynep Kaya|Hugo Martin|"
    "Anjali Desai|Felix Gruber|Noor Siddiqui|Viktor Ilic|Camila Rojas|Owen Pritchard|Birgit Holm|Kwame Mensah"))
CITY = Kind(name="city", values=_items(
    "Lisbon|Oslo|Turin|Ghent|Porto|Krakow|Bergen|Malmo|Graz|Leeds|Nantes|Seville|Tampere|Utrecht|Bremen|Cork|"
    "Bologna|Brno|Aarhus|Basel|Lyon|Valencia|Tartu|Kaunas|Trieste|Gdansk|Linz|Zagreb|Dresden|Antwerp|Bilbao|Riga"))
COLOUR = Kind(name="colour", values=_items(
    "teal|crimson|copper|violet|peach|navy|scarlet|cream|turquoise|maroon|beige|lilac|rust|coral|silver|khaki|"
    "magenta|bronze|mint|lavender|black|white|yellow|pink"))
CHANNEL = Kind(name="channel", values=_items(
    "#orchid|#lantern|#compass|#harbour|#meadow|#beacon|#pebble|#thicket|#anchor|#juniper|#cobalt|#drizzle|"
    "#willow|#ember|#saffron|#tundra|#marble|#clover|#raven|#glacier|#timber|#nectar|#canyon|#breeze"))
HOST = Kind(name="host", values=_items(
    "heron|falcon|plover|osprey|kestrel|puffin|swift|magpie|condor|pelican|sparrow|toucan|bittern|wren|curlew|"
    "gannet|petrel|starling|linnet|avocet|merlin|oriole|finch|egret"))
ROLE = Kind(name="role", values=_items(
    "the line manager|the site lead|the finance partner|the security officer|the people partner|the legal counsel|"
    "the budget holder|the project sponsor|the privacy officer|the head of design|the purchasing lead|"
    "the department chair|the safety officer|the data steward|the chief engineer|the regional director|"
    "the programme manager|the works council|the export officer|the quality lead|the union representative|"
    "the treasury lead|the duty manager|the audit partner"))

_PLACES = _items(
    "the garage|the library|the canteen|the gym|the reception|the warehouse|the bike cellar|the roof terrace|"
    "the mail room|the coffee bar|the laundry|the workshop|the visitor centre|the archive|the loading bay|"
    "the health office")

HELPDESK_FAMILIES = (
    Family(name="closing time", kind=EVENING, entities=_PLACES, statements=_lines("""
        {E} closes at {v}.
        {E} shuts at {v}.
        {E} locks its doors at {v}.
        {E} stays open until {v}.
        Closing time of {e} is {v}.
        The last visitors leave {e} at {v}.
        {E} is open up to {v}.
        {E} closes its doors at {v}."""), questions=_lines("""
        When does {e} close?
        At what time does {e} shut?
        When are the doors of {e} locked?
        Until when is {e} open?
        What is the closing time of {e}?
        When must the last visitors leave {e}?
        How late is {e} open?
        What time does {e} close?""")),
    Family(name="opening time", kind=MORNING, entities=_PLACES, statements=_lines("""
        {E} opens at {v}.
        {E} starts service at {v}.
        {E} unlocks its doors at {v}.
        {E} is open from {v}.
        Opening time of {e} is {v}.
        The first visitors enter {e} at {v}.
        {E} is staffed from {v}.
        {E} opens its doors at {v}."""), questions=_lines("""
        When does {e} open?
        At what time does {e} start service?
        When are the doors of {e} unlocked?
        From when is {e} open?
        What is the opening time of {e}?
        When may the first visitors enter {e}?
        From what hour is {e} staffed?
        What time does {e} open?""")),
    Family(name="floor", kind=FLOOR, entities=_items(
        "the print room|the server room|the quiet room|the first aid room|the mother room|the press room|"
        "the map room|the storage room|the music room|the training room|the prayer room|the repair room|"
        "the copy room|the reading room|the tool room|the phone room"), statements=_lines("""
        {E} is on floor {v}.
        You find {e} on floor {v}.
        {E} is located on floor {v}.
        {E} sits on floor {v}.
        Floor {v} houses {e}.
        Take the lift to floor {v} for {e}.
        Floor {v} is where {e} is.
        {E} has moved to floor {v}."""), questions=_lines("""
        On which floor is {e}?
        On what floor do you find {e}?
        Which floor is {e} located on?
        On which level does {e} sit?
        Which floor houses {e}?
        To which floor do I take the lift for {e}?
        What floor is home to {e}?
        What floor is {e} on?""")),
    Family(name="owner", kind=PERSON, entities=_items(
        "the software licences|the office plants|the parking permits|the fire drills|the intern programme|"
        "the travel desk|the supplier contracts|the guest badges|the phone plans|the staff survey|"
        "the wiki|the company cars|the spare keys|the lost property|the meeting calendar|the welcome packs"),
        statements=_lines("""
        {v} handles {e}.
        {v} looks after {e}.
        {v} takes care of {e}.
        {v} is in charge of {e}.
        The contact for {e} is {v}.
        Questions about {e} go to {v}.
        Please ask {v} about {e}.
        {v} is responsible for {e}."""), questions=_lines("""
        Who handles {e}?
        Who looks after {e}?
        Who takes care of {e}?
        Who is in charge of {e}?
        Who is the contact for {e}?
        Who gets questions about {e}?
        Whom do I ask about {e}?
        Who is responsible for {e}?""")),
    Family(name="due date", kind=DATE, entities=_items(
        "the travel report|the budget plan|the risk register|the sales forecast|the annual review|the audit file|"
        "the training plan|the expense claim|the stock list|the tax form|the safety report|the hiring plan|"
        "the energy report|the project brief|the vendor list|the holiday plan"), statements=_lines("""
        {E} is due on {v}.
        {E} must be sent by {v}.
        The deadline for {e} is {v}.
        {E} has to be ready by {v}.
        {E} must be handed in on {v}.
        We expect {e} on {v}.
        {E} closes for edits on {v}.
        The due date of {e} is {v}."""), questions=_lines("""
        When is {e} due?
        By when must {e} be sent?
        What is the deadline for {e}?
        By what date has {e} to be ready?
        On what date must {e} be handed in?
        When do we expect {e}?
        When does {e} close for edits?
        What is the due date of {e}?""")),
    Family(name="version", kind=VERSION, entities=_items(
        "the mail client|the chat app|the badge reader|the time tracker|the print driver|the backup agent|"
        "the scanner tool|the video player|the payroll app|the password vault|the room planner|the form editor|"
        "the search server|the map viewer|the build agent|the report engine"), statements=_lines("""
        {E} runs version {v}.
        {E} was upgraded to version {v}.
        We use version {v} of {e}.
        Version {v} of {e} is installed.
        The current version of {e} is {v}.
        {E} is now at release {v}.
        {E} ships in version {v}.
        {E} is on version {v}."""), questions=_lines("""
        Which version does {e} run?
        To which version was {e} upgraded?
        Which version of {e} do we use?
        What version of {e} is installed?
        What is the current version of {e}?
        At which release is {e} now?
        In which version does {e} ship?
        What version is {e} on?""")),
    Family(name="price", kind=PRICE, entities=_items(
        "the lunch menu|the day ticket|the phone case|the locker rental|the guest meal|the bike lock|"
        "the laptop sleeve|the desk lamp|the water bottle|the salad box|the team shirt|the parking card|"
        "the breakfast bag|the desk mat|the travel mug|the fruit basket"), statements=_lines("""
        {E} costs {v}.
        {E} is sold for {v}.
        Staff get {e} for {v}.
        {E} is charged at {v}.
        The price of {e} is {v}.
        You pay {v} for {e}.
        {E} goes for {v}.
        The cost of {e} is {v}."""), questions=_lines("""
        How much does {e} cost?
        For how much is {e} sold?
        How much do staff pay for {e}?
        What is charged for {e}?
        What is the price of {e}?
        How much do you pay for {e}?
        What does {e} go for?
        What is the cost of {e}?""")),
    Family(name="seats", kind=SEATS, entities=_items(
        "the oak hall|the birch hall|the maple hall|the cedar hall|the elm hall|the ash hall|the pine hall|"
        "the beech hall|the rowan hall|the alder hall|the larch hall|the hazel hall|the poplar hall|the cherry hall|"
        "the spruce hall|the walnut hall"), statements=_lines("""
        {E} seats {v} people.
        {E} has room for {v} guests.
        {E} takes up to {v} visitors.
        Up to {v} people fit into {e}.
        {E} has {v} seats.
        {E} holds {v} people.
        {E} was furnished for {v} people.
        There are {v} seats in {e}."""), questions=_lines("""
        How many people does {e} seat?
        For how many guests has {e} room?
        How many visitors does {e} take?
        How many people fit into {e}?
        How many seats does {e} have?
        How many people does {e} hold?
        For how many people was {e} furnished?
        How many seats are in {e}?""")),
    Family(name="retention", kind=DAYS, entities=_items(
        "the door logs|the call recordings|the chat history|the camera footage|the job applications|the test data|"
        "the crash reports|the visitor lists|the mail archive|the web logs|the survey answers|the scan files|"
        "the draft invoices|the support tickets|the screen captures|the print queue"), statements=_lines("""
        We keep {e} for {v}.
        We store {e} for {v}.
        We delete {e} after {v}.
        We hold {e} for {v}.
        The retention period of {e} is {v}.
        We erase {e} once {v} have passed.
        The system purges {e} after {v}.
        The storage time of {e} is {v}."""), questions=_lines("""
        How long do we keep {e}?
        For how long do we store {e}?
        After how long do we delete {e}?
        For what period do we hold {e}?
        What is the retention period of {e}?
        After what time do we erase {e}?
        When does the system purge {e}?
        What is the storage time of {e}?""")),
    Family(name="duration", kind=MINUTES, entities=_items(
        "the safety drill|the welcome tour|the weekly call|the first aid course|the exit talk|the eye test|"
        "the site walk|the code clinic|the ladder course|the team lunch|the demo session|the data course|"
        "the lab tour|the voice training|the shift briefing|the health check"), statements=_lines("""
        {E} takes {v}.
        {E} lasts {v}.
        {E} is planned for {v}.
        {E} goes on for {v}.
        The length of {e} is {v}.
        Please reserve {v} for {e}.
        {E} is over after {v}.
        The duration of {e} is {v}."""), questions=_lines("""
        How long does {e} take?
        How long does {e} last?
        For how long is {e} planned?
        How long does {e} go on?
        What is the length of {e}?
        How much time do I reserve for {e}?
        After how long is {e} over?
        What is the duration of {e}?""")),
    Family(name="extension", kind=EXTENSION, entities=_items(
        "the parking desk|the payroll team|the night guard|the house nurse|the press office|the repair crew|"
        "the cleaning crew|the legal team|the alarm centre|the travel office|the stock room|the badge office|"
        "the fleet desk|the tax team|the kitchen|the post desk"), statements=_lines("""
        The extension of {e} is {v}.
        You reach {e} at extension {v}.
        Call {v} for {e}.
        Dial {v} to reach {e}.
        The number of {e} is {v}.
        {E} answers calls at {v}.
        Ring {v} to speak to {e}.
        {E} has the extension {v}."""), questions=_lines("""
        What is the extension of {e}?
        At which extension do you reach {e}?
        Which number do I call for {e}?
        What do I dial to reach {e}?
        What is the number of {e}?
        At which number does {e} answer calls?
        What do I ring to speak to {e}?
        Which extension does {e} have?""")),
    Family(name="channel", kind=CHANNEL, entities=_items(
        "build failures|desk moves|laptop repairs|menu ideas|news alerts|new starters|release plans|ride sharing|"
        "room swaps|security alerts|design reviews|bug reports|job openings|book swaps|event photos|power cuts"),
        statements=_lines("""
        The channel for {e} is {v}.
        We discuss {e} in {v}.
        Please post {e} in {v}.
        Messages about {e} go to {v}.
        {E} are announced in {v}.
        Use {v} to talk about {e}.
        {E} belong in {v}.
        Join {v} to follow {e}."""), questions=_lines("""
        Which channel is for {e}?
        Where do we discuss {e}?
        Where do I post {e}?
        Where do messages about {e} go?
        In which channel are {e} announced?
        Which channel do I use to talk about {e}?
        Where do {e} belong?
        Which channel do I join to follow {e}?""")),
    Family(name="city", kind=CITY, entities=_items(
        "the design summit|the sales kickoff|the partner day|the winter party|the trade fair|the board retreat|"
        "the tech forum|the spring cup|the product launch|the press event|the alumni meeting|the chess final|"
        "the summer camp|the career fair|the user meeting|the award night"), statements=_lines("""
        {E} takes place in {v}.
        {E} is held in {v}.
        {E} will be hosted in {v}.
        We go to {v} for {e}.
        The venue of {e} is in {v}.
        {E} was moved to {v}.
        {v} welcomes {e} this year.
        {E} happens in {v}."""), questions=_lines("""
        Where does {e} take place?
        In which city is {e} held?
        Where will {e} be hosted?
        Where do we go for {e}?
        In which city is the venue of {e}?
        To which city was {e} moved?
        Which city welcomes {e} this year?
        Where does {e} happen?""")),
    Family(name="badge colour", kind=COLOUR, entities=_items(
        "contractors|visitors|students|drivers|auditors|cooks|reporters|trainees|cleaners|guides|painters|"
        "couriers|nurses|gardeners|electricians|volunteers"), statements=_lines("""
        The badge colour of {e} is {v}.
        {E} wear a {v} badge.
        The badges of {e} are {v}.
        A {v} badge is given to {e}.
        {E} get a {v} badge.
        {E} carry a badge in {v}.
        We print badges for {e} in {v}.
        The badge for {e} is {v}."""), questions=_lines("""
        What is the badge colour of {e}?
        What colour of badge do {e} wear?
        What colour are the badges of {e}?
        What colour of badge is given to {e}?
        Which badge colour do {e} get?
        In which colour do {e} carry a badge?
        In which colour do we print badges for {e}?
        What colour is the badge for {e}?""")),
    Family(name="host", kind=HOST, entities=_items(
        "the staging database|the wiki backup|the test cluster|the mail relay|the image store|the licence server|"
        "the job queue|the proxy|the log collector|the file share|the metrics store|the web cache|the login service|"
        "the ticket system|the code mirror|the name server"), statements=_lines("""
        {E} runs on host {v}.
        {E} is installed on host {v}.
        {E} was moved to host {v}.
        Host {v} serves {e}.
        The host of {e} is {v}.
        Log in to host {v} for {e}.
        {E} lives on host {v}.
        {E} uses host {v}."""), questions=_lines("""
        On which host does {e} run?
        On which host is {e} installed?
        To which host was {e} moved?
        Which host serves {e}?
        What is the host of {e}?
        Which host do I log in to for {e}?
        On which host does {e} live?
        Which host does {e} use?""")),
    Family(name="approver", kind=ROLE, entities=_items(
        "overtime|home office|unpaid leave|press interviews|data exports|new hires|price cuts|gift purchases|"
        "business trips|laptop orders|room bookings|bonus payments|name changes|refunds|site visits|contract ends"),
        statements=_lines("""
        Requests for {e} are approved by {v}.
        Forms about {e} are signed by {v}.
        Approval of {e} comes from {v}.
        The decision on {e} lies with {v}.
        For {e} you need a signature of {v}.
        For {e} you need a yes from {v}.
        Permission for {e} is granted by {v}.
        The approver for {e} is {v}."""), questions=_lines("""
        Who approves requests for {e}?
        Who signs forms about {e}?
        From whom comes the approval of {e}?
        With whom lies the decision on {e}?
        Whose signature do you need for {e}?
        Whose yes do you need for {e}?
        Who grants permission for {e}?
        Who is the approver for {e}?""")),
    Family(name="discount", kind=PERCENT, entities=_items(
        "train tickets|gym passes|work shoes|garden tools|museum visits|phone contracts|office chairs|used laptops|"
        "concert tickets|bus passes|winter tyres|language courses|hotel nights|sports gear|art supplies|car rentals"),
        statements=_lines("""
        Staff get {v} off {e}.
        The discount on {e} is {v}.
        We take {v} off {e}.
        {E} are {v} cheaper for staff.
        The staff discount on {e} is {v}.
        You save {v} on {e}.
        The rebate on {e} is {v}.
        Employees get a discount of {v} on {e}."""), questions=_lines("""
        How much do staff get off {e}?
        What is the discount on {e}?
        How much do we take off {e}?
        How much cheaper are {e} for staff?
        What is the staff discount on {e}?
        How much do you save on {e}?
        What is the rebate on {e}?
        What discount on {e} do employees get?""")),
    Family(name="size limit", kind=SIZE, entities=_items(
        "mail attachments|profile photos|voice notes|shared folders|form uploads|web videos|log bundles|"
        "print jobs|chat images|scan uploads|test reports|slide decks|phone backups|map layers|data imports|"
        "guest uploads"), statements=_lines("""
        {E} may be up to {v}.
        The size limit for {e} is {v}.
        {E} must stay below {v}.
        We accept {e} of at most {v}.
        The limit for {e} is {v}.
        {E} can have a size of {v}.
        {E} are capped at {v}.
        The maximum size of {e} is {v}."""), questions=_lines("""
        How big may {e} be?
        What is the size limit for {e}?
        Below which size must {e} stay?
        Up to which size do we accept {e}?
        What is the limit for {e}?
        What size can {e} have?
        At which size are {e} capped?
        What is the maximum size of {e}?""")),
)
