"""The tiny world's rules: causes, and what each of them does to a scene (the types of paper Sec.
3.1).

A rule is a cause ("a hard frost came overnight"). What it does depends on what the source shows:
water turns to ice, grass to snow. So an instruction never states the operation, and cannot be
understood without looking.

Each rule has a function of its name, resolve(scene, rng) -> Effect, or None where the rule does not
apply; and five phrases in RULES. A thing is named only by a rule whose phrases have "{n}" in them.
"""

from typing import Callable, NamedTuple

import numpy as np

from tiny.scene import COLOUR_WORDS, OTHER_SEASON, SIDES, Edit, Scene

FROST = {"grass": "snow", "water": "ice", "stone": "ice", "sand": "snow"}
HEAT = {"snow": "grass", "ice": "water", "grass": "sand"}
NEXT_TIME = {"day": "dusk", "dusk": "night", "night": "day"}


class Effect(NamedTuple):
    """What a rule does to a scene."""
    edit: Edit
    named: int | None                                    # the thing that the instruction names
    thought: str                                         # from what can be seen to what must happen


class Rule(NamedTuple):
    """A cause. Its last phrase and the place `away` are held out, for the subset "cross"."""
    name: str
    type: str
    away: str
    resolve: Callable[[Scene, np.random.Generator], Effect | None]
    phrases: tuple[str, ...]                             # four to train on, and one held out


# ------------------------------------------------------------------------------------ shared pieces

def standing_thing(scene: Scene, rng, but: int | None = None) -> int | None:
    """Any thing but one that neither moves nor flies, to speak of by name."""
    for i in rng.permutation(len(scene.things)):
        thing = scene.things[i]
        if i != but and thing.vx == 0 and not thing.flies:
            return int(i)
    return None


def way_of(thing) -> int:
    """-1 for a thing that moves left, +1 for one that moves right."""
    return 1 if thing.vx > 0 else -1


def way_to(scene: Scene, i: int, other: int) -> int:
    """-1 where the other thing is left of thing i, +1 where it is right of it."""
    return 1 if scene.things[other].x > scene.things[i].x else -1


def change_ground(scene: Scene, table: dict[str, str], why: str) -> Effect | None:
    if scene.ground not in table:
        return None
    new = table[scene.ground]
    thought = f"the ground is {scene.ground} , {why} it turns to {new}"
    return Effect(Edit("ground", value=new), None, thought)


def lose_hold(scene: Scene, op: str) -> Effect | None:
    i = scene.flyer
    if i is None:
        return None
    name = scene.things[i].name
    return Effect(Edit(op, i), None, f"the {name} is in the air , so it must be on the ground")


def take_colour(scene: Scene, rng, colour: str) -> Effect | None:
    i = standing_thing(scene, rng, but=scene.largest)
    if i is None or scene.things[i].colour == colour:
        return None
    word = COLOUR_WORDS.get(colour, colour)
    thought = f"what it takes the colour of is {word} , so it must be {word}"
    return Effect(Edit("paint", i, colour), i, thought)


def feel(scene: Scene, rng, other: int, who: str, toward: int) -> Effect | None:
    """A thing goes toward (+1) or away from (-1) the other, who is the largest or smallest."""
    i = standing_thing(scene, rng, but=other)
    if i is None:
        return None
    way = way_to(scene, i, other) * toward
    thought = f"the {who} is the {scene.things[other].name} , so it goes {SIDES[1 + way]}"
    return Effect(Edit("go", i, way), i, thought)


# ----------------------------------------------------------------------------------- RAVE: one edit

def departed(scene: Scene, rng) -> Effect | None:
    i = scene.mover
    if i is None:
        return None
    thought = f"the {scene.things[i].name} is moving away , so it must be gone"
    return Effect(Edit("remove", i), None, thought)


def hours(scene: Scene, rng) -> Effect:
    later = NEXT_TIME[scene.time]
    return Effect(Edit("time", value=later), None, f"it is {scene.time} , so later it is {later}")


def season(scene: Scene, rng) -> Effect | None:
    return change_ground(scene, OTHER_SEASON, "half a year later")


def light(scene: Scene, rng) -> Effect | None:
    i = standing_thing(scene, rng)
    slot = 1 + scene.light
    if i is None or not scene.is_free(slot):
        return None
    thought = f"the light is {SIDES[slot]} , so it must be {SIDES[slot]}"
    return Effect(Edit("move", i, slot), i, thought)


def far(scene: Scene, rng) -> Effect | None:
    i = standing_thing(scene, rng, but=scene.largest)
    largest = scene.things[scene.largest]
    slot = 2 if largest.x < .5 else 0
    if i is None or largest.slot == 1 or not scene.is_free(slot):
        return None
    thought = f"the largest is {SIDES[largest.slot]} , so it must be {SIDES[slot]}"
    return Effect(Edit("move", i, slot), i, thought)


def trade(scene: Scene, rng) -> Effect | None:
    i, j = scene.smallest, scene.largest
    small, large = scene.things[i], scene.things[j]
    if small.vx != 0 or large.vx != 0 or small.flies or large.flies:
        return None
    thought = f"the smallest is the {small.name} , the largest is the {large.name}"
    return Effect(Edit("swap", i, j), None, thought)


def frost(scene: Scene, rng) -> Effect | None:
    return change_ground(scene, FROST, "in a frost")


def heat(scene: Scene, rng) -> Effect | None:
    return change_ground(scene, HEAT, "in the heat")


def string(scene: Scene, rng) -> Effect | None:
    return lose_hold(scene, "drop")


def struck(scene: Scene, rng) -> Effect:
    i = scene.largest
    thought = f"the largest is the {scene.things[i].name} , so it must be black"
    return Effect(Edit("paint", i, "black"), None, thought)


def mirror(scene: Scene, rng) -> Effect | None:
    return take_colour(scene, rng, scene.time)


def blend(scene: Scene, rng) -> Effect | None:
    return take_colour(scene, rng, scene.ground)


def signal(scene: Scene, rng) -> Effect | None:
    i = scene.find(lambda thing: thing.colour in ("red", "green"))
    if i is None:
        return None
    new = "green" if scene.things[i].colour == "red" else "red"
    thought = f"the signal is the {scene.things[i].name} , so it must be {new}"
    return Effect(Edit("paint", i, new), None, thought)


def team(scene: Scene, rng) -> Effect | None:
    return take_colour(scene, rng, scene.things[scene.largest].colour)


# ---------------------------------------------------------------------------- ICVG: what comes next

def follow(scene: Scene, rng) -> Effect | None:
    i = scene.mover
    if i is None:
        return None
    mover = scene.things[i]
    thought = f"the {mover.name} moves , so the camera pans with it"
    return Effect(Edit("pan", value=way_of(mover)), None, thought)


def closer(scene: Scene, rng) -> Effect | None:
    i = scene.smallest
    if scene.things[i].flies:
        return None
    thought = f"the smallest is the {scene.things[i].name} , so the camera zooms in on it"
    return Effect(Edit("zoom", i), None, thought)


def turn(scene: Scene, rng) -> Effect:
    thought = f"the light is {SIDES[1 + scene.light]} , so the camera pans there"
    return Effect(Edit("pan", value=scene.light), None, thought)


def gust(scene: Scene, rng) -> Effect | None:
    i = scene.smallest
    if scene.things[i].vx != 0:
        return None
    side = SIDES[1 + scene.light]
    thought = f"the light is {side} , so the {scene.things[i].name} is blown away from it"
    return Effect(Edit("go", i, -scene.light), None, thought)


def push(scene: Scene, rng) -> Effect | None:
    i = scene.mover
    if i is None:
        return None
    mover = scene.things[i]
    ahead = {}                                           # what is in its path: its distance
    for j, thing in enumerate(scene.things):
        distance = (thing.x - mover.x) * way_of(mover)
        if j != i and distance > 0 and thing.flies == mover.flies:
            ahead[j] = distance
    if not ahead:
        return None
    j = min(ahead, key=ahead.get)
    thought = f"the {mover.name} runs into the {scene.things[j].name} , so that one moves on"
    return Effect(Edit("push", i, j), None, thought)


def snap(scene: Scene, rng) -> Effect | None:
    return lose_hold(scene, "fall")


def fear(scene: Scene, rng) -> Effect | None:
    return feel(scene, rng, scene.largest, "largest", toward=-1)


def longing(scene: Scene, rng) -> Effect | None:
    return feel(scene, rng, scene.smallest, "smallest", toward=1)


def joy(scene: Scene, rng) -> Effect | None:
    i = scene.smallest
    small = scene.things[i]
    if small.vx != 0 or small.flies:
        return None
    return Effect(Edit("jump", i), None, f"the smallest is the {small.name} , so it jumps")


def onward(scene: Scene, rng) -> Effect | None:
    i = scene.mover
    if i is None:
        return None
    mover = scene.things[i]
    thought = f"the {mover.name} is moving , so it goes on the same way"
    return Effect(Edit("go", i, way_of(mover)), None, thought)


def habit(scene: Scene, rng) -> Effect | None:
    i = scene.smallest
    small = scene.things[i]
    if small.vx != 0 or small.flies:
        return None
    if scene.time == "day":
        return Effect(Edit("jump", i), None, f"it is day , so the {small.name} jumps")
    way = way_to(scene, i, scene.largest)
    thought = f"it is {scene.time} , so the {small.name} goes {SIDES[1 + way]} to the largest"
    return Effect(Edit("go", i, way), None, thought)


# --------------------------------------------------------- the table: type, held-out place, phrases

RULES = {
    "rave": (
        Rule("departed", "Temporal Reasoning", "city", departed, (
            "imagine the scene an hour after the traveller departed",
            "some time has passed since the one on its way left",
            "show the place once the wanderer has taken its leave",
            "whoever was passing through said goodbye long ago",
            "picture the spot long after the one in motion set off")),
        Rule("hours", "Temporal Reasoning", "lake", hours, (
            "imagine the same place some hours later",
            "the clock has run on for a good while",
            "come back here after a few hours",
            "let a third of the day pass",
            "wait here until the hours have gone by")),
        Rule("season", "Temporal Reasoning", "lake", season, (
            "imagine this place half a year later",
            "two seasons have gone by",
            "the year has turned to its other half",
            "see it again when the opposite season reigns",
            "six months have passed over this land")),
        Rule("light", "Spatial Reasoning", "desert", light, (
            "{n} went to stand below the light in the sky",
            "{n} likes to be right under what shines above",
            "{n} has found the spot where the light stands overhead",
            "{n} wants to bask beneath the bright one up there",
            "{n} rests where the lamp of the sky hangs above it")),
        Rule("far", "Spatial Reasoning", "meadow", far, (
            "{n} keeps as far from the largest as it can",
            "{n} has sought the spot farthest from the biggest",
            "{n} wants all the room there is between it and the largest",
            "{n} now stands opposite the biggest one",
            "{n} could not be any farther from the giant")),
        Rule("trade", "Spatial Reasoning", "lake", trade, (
            "the smallest and the largest have traded homes",
            "the biggest lives where the tiniest used to , and the other way round",
            "smallest and largest each took the other's spot",
            "the giant and the dwarf changed places",
            "what was the home of the largest is now that of the smallest")),
        Rule("frost", "Physical Causality", "desert", frost, (
            "a hard frost came overnight",
            "it has been freezing for days",
            "an icy cold took hold of the land",
            "winter struck this place",
            "the temperature fell far below zero")),
        Rule("heat", "Physical Causality", "lake", heat, (
            "a heat wave came over the land",
            "it has been burning hot for days",
            "the warmest week of all has passed",
            "hot air settled on this place",
            "weeks of blazing heat have gone by")),
        Rule("string", "Physical Causality", "meadow", string, (
            "what held it up in the air has given way",
            "the string that kept it aloft was cut",
            "nothing carries the hovering one any more",
            "gravity has won over the one above",
            "the one up high has lost its support")),
        Rule("struck", "Physical Causality", "lake", struck, (
            "lightning struck the largest one",
            "a bolt from the sky has charred the biggest",
            "the giant caught fire and burned out",
            "the biggest one was scorched by a flash",
            "a flash of lightning found the tallest target")),
        Rule("mirror", "Semantic Inference", "desert", mirror, (
            "{n} has been polished until it mirrors the sky",
            "the sky is reflected all over {n}",
            "{n} is now a mirror turned to the heavens",
            "{n} shines with the reflection of what is above",
            "{n} gleams like a looking glass under the heavens")),
        Rule("blend", "Semantic Inference", "meadow", blend, (
            "{n} hides by blending into the ground",
            "{n} is camouflaged on what it stands on",
            "{n} has taken on the look of the soil below",
            "nobody can tell {n} from the floor it stands on",
            "{n} is a chameleon on the ground")),
        Rule("signal", "Semantic Inference", "city", signal, (
            "the traffic signal has switched",
            "the signal now says the opposite",
            "the lamp of the crossing has changed over",
            "drivers see the other signal now",
            "the signal flipped to its counterpart")),
        Rule("team", "Semantic Inference", "lake", team, (
            "{n} has joined the team of the largest",
            "{n} wears the uniform of the biggest one",
            "{n} now belongs to the club of the giant",
            "{n} plays on the side of the largest from today",
            "{n} is dressed like its big captain")),
    ),
    "icvg": (
        Rule("follow", "Camera Reasoning", "lake", follow, (
            "the camera goes after the one that travels",
            "we keep watching the one on its way",
            "the operator cannot let go of the moving one",
            "our eyes stay on the traveller",
            "the shot chases the one in motion")),
        Rule("closer", "Camera Reasoning", "meadow", closer, (
            "the camera wants a closer look at the smallest one",
            "show us what the tiniest is like",
            "the shot is now all about the smallest",
            "let us study the dwarf among them",
            "the lens is curious about the smallest")),
        Rule("turn", "Camera Reasoning", "desert", turn, (
            "the camera looks to where the light comes from",
            "the shot searches for the source of the light",
            "our gaze is drawn by what shines",
            "the operator turns to the brightness",
            "the view seeks out the light")),
        Rule("gust", "Causal Reasoning", "city", gust, (
            "a gust from the bright side catches the smallest",
            "wind rises where the light stands and takes the smallest along",
            "the smallest is blown off by a breeze from the light",
            "the tiniest cannot stand against the wind from the light",
            "air rushes in from the shining side onto the smallest")),
        Rule("push", "Causal Reasoning", "meadow", push, (
            "what travels runs into what is in its path",
            "the moving one hands its speed to the next",
            "there is a collision ahead",
            "the traveller bumps into its neighbour",
            "the one on its way hits the one before it")),
        Rule("snap", "Causal Reasoning", "desert", snap, (
            "the rope that holds it up snaps now",
            "what keeps it in the air fails this moment",
            "watch the hovering one lose its hold",
            "gravity takes the one above right now",
            "this is the instant its support breaks")),
        Rule("fear", "Emotional Reasoning", "lake", fear, (
            "{n} is afraid of the largest",
            "the biggest one frightens {n}",
            "{n} panics at the sight of the giant",
            "{n} feels threatened by the largest",
            "{n} dreads the biggest")),
        Rule("longing", "Emotional Reasoning", "city", longing, (
            "{n} longs for the company of the smallest",
            "{n} misses the tiniest one",
            "{n} is fond of the smallest",
            "the smallest has won the heart of {n}",
            "{n} yearns for the dwarf")),
        Rule("joy", "Emotional Reasoning", "desert", joy, (
            "the smallest cannot hide its joy",
            "the tiniest is beside itself with happiness",
            "good news reach the smallest one",
            "the smallest is overjoyed",
            "the dwarf is in the happiest mood")),
        Rule("onward", "Commonsense Reasoning", "meadow", onward, (
            "what is on its way keeps going , faster and faster",
            "the traveller is in a hurry to get there",
            "nothing stops the one in motion",
            "the moving one is late and speeds up",
            "the one on its way presses on")),
        Rule("nightfall", "Commonsense Reasoning", "city", hours, (
            "the day goes on as days do",
            "time passes in the usual order",
            "then comes the next part of the day",
            "the sun and the moon keep to their schedule",
            "the day takes its natural course")),
        Rule("habit", "Commonsense Reasoning", "lake", habit, (
            "the smallest does what children do at this hour",
            "the little one plays by day and seeks its parent when it is dark",
            "the tiniest behaves as the hour asks of the young",
            "this is the time of day that tells the smallest what to do",
            "the little one follows the clock as the young do")),
    ),
}

TYPES = {subset: list(dict.fromkeys(rule.type for rule in rules))
         for subset, rules in RULES.items()}
