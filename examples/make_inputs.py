"""Writes the example inputs: chat.jsonl, responses.jsonl and embeddings.jsonl.

    python examples/make_inputs.py

Three typical batches: support tickets to classify, product texts to translate, and questions to embed for a
search. The lines are always the same. The models are small models with these names in Ollama;
`--chat-model` and `--embedding-model` set others.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

CLASSIFY = (
    "You sort support tickets of a shop for kitchen machines. Answer with one JSON object with the keys "
    '"topic" (delivery, defect, refund, account, question), "urgency" (1 to 5) and "summary" '
    "(at most twelve words)."
)

OPENINGS = (
    "Hello,",
    "Hi there, third mail this week.",
    "Good morning! I love the machine, but",
    "To whom it may concern:",
    "hey so",
    "Bonjour, sorry for my English.",
    "URGENT!!!",
    "Dear team, my mother (84) asked me to write:",
    "Following up on ticket #48213.",
    "Quick one:",
)

PROBLEMS = (
    "the espresso machine I ordered on 3 March still says 'label created'",
    "the blender's jar arrived cracked right through the handle",
    "I was charged twice, €249.00 each, for one mixer",
    "the reset link for my account opens an empty page",
    "the oven door no longer closes after the self-cleaning programme",
    "the parcel was left with a neighbour I have never heard of",
    "my kettle switches off at about 70 °C instead of boiling",
    "I returned the toaster five weeks ago and no money has come back",
    "can the dough hook go in the dishwasher, or does it turn grey?",
    "the touch panel of the hob beeps at night with nobody near it",
    "the invoice shows my old address and our accounting rejects it",
    "the voucher SPRING-15 is refused although it runs until Sunday",
    "the ice maker leaks about half a litre over night",
    "which water filter fits the model from 2019, the one with two taps?",
    "somebody changed the e-mail of my account and it was not me",
    "the replacement part you sent is for the left-hinged fridge, mine is right-hinged",
    "the coffee grinder smells of burnt plastic after ten seconds",
    "the app shows 'device offline' since the update to 5.2",
    "I want to cancel the second of my two orders, not the first",
    "the warranty page does not accept the serial number 00-7731-KM",
    "the juicer throws pulp on the ceiling 😅",
    "one of the six knives is missing from the block",
    "the courier asks for customs fees although I ordered inside the EU",
    "does the rice cooker keep warm for more than five hours?",
    "the dishwasher's door cut my finger, the edge is sharp",
    "your chat told me 'two days', that was two weeks ago",
    "the scale shows 3 g with nothing on it",
    "please delete all data you hold about me",
    "the bread machine's lid does not fit, as if it came from another model",
    "the gift card PIN is unreadable after scratching",
)

ENDINGS = (
    "What can you do?",
    "I attach two photos.",
    "Please answer before Friday, we have guests.",
    "I would rather have my money back than another one.",
    "No hurry, thanks!",
    "If this goes on I will post it everywhere.",
    "Order number 2291-7745-K.",
    "Sent from my phone, sorry for the typos",
    "Kind regards, Ines Albrecht",
    "Thank you for your patience with me.",
)

TRANSLATE = (
    "Translate the product text. Keep names, numbers and units as they are. Answer with the text only."
)

PRODUCTS = (
    "Mill No. 3: hand grinder with a 38 mm conical burr. Holds 25 g, takes apart without tools.",
    "Borealis kettle, 1.2 litres. Pours slowly on purpose: the neck is 6 mm wide.",
    "Linden board, 42 x 28 cm, oiled twice. Wash by hand, dry standing up.",
    "Cast-iron pan 'Vera'. Seasoned at the works, 2.1 kg, good on induction and on an open fire.",
    "A toaster with one long slot for two slices of sourdough, and a button for 'a bit more'.",
    "Storm blender: 900 W, six blades, crushes ice in eight seconds. Not quiet, 82 dB.",
    "The pocket scale weighs to 0.1 g up to 500 g. Runs a year on one CR2032 cell.",
    "Rice cooker for one: 0.3 litres, brown rice in 34 minutes, keeps warm for five hours.",
    "Moka pot, six cups, stainless steel. Spare seals are in the lid.",
    "Kombucha jar with a linen cover and a tap of ceramic; 4 litres.",
    "Bread box with a lid that is a cutting board. Air holes at the back, crumbs at the front.",
    "Milk frother that stops by itself at 62 °C. The whisk is a magnet; do not lose it.",
    "Smart probe: tells your phone when the roast is done. Range 30 m through one wall.",
    "Salt pig, glazed inside only, so that your fingers do not slip.",
    "Knife 'Tern', 16 cm, carbon steel. It will go grey; that is how it is meant to be.",
    "Whetstone 1000/3000. Soak for ten minutes. A good edge takes eight.",
    "Apron in waxed cotton with a towel loop on the left. One size, ties in front.",
    "Pressure cooker, 5 litres, two pressures, locks with one hand. Chickpeas in 18 minutes.",
    "Oven thermometer that hangs or stands, 50 to 300 °C, because your oven is lying to you.",
    "Spice tins, set of twelve, with a window in the lid and labels in four languages.",
    "Pasta drying rack: folds to the size of an umbrella, holds one kilo.",
    "Egg timer shaped like a stone. Turn it; it hums, then rings once.",
    "Compost bin with a charcoal filter in the lid. The filter lasts about four months.",
    "Water filter bottle: 150 litres per cartridge, counts the refills for you.",
    "Waffle iron for hearts or squares; the plates swap and go in the dishwasher.",
    "Ice-cream maker with its own compressor. No freezing the bowl the night before.",
    "Garlic press with a hinge that opens flat, so it is clean before the garlic dries.",
    "Thermos 'Long Night': 24 hours hot, 36 hours cold, 0.75 litres, one scratch-proof colour.",
    "Bamboo steamer, two floors, 25 cm. Line it with a cabbage leaf.",
    "Induction plate, 2,000 W, thin as a book. It switches itself off when you lift the pan.",
    "Nut milk bag, fine mesh, dries within the hour.",
    "Butter dish that holds water in the base: soft butter for five days, no fridge.",
    "A corkscrew with nothing to explain.",
    "Fondue set for six, with forks in six colours and a burner that cannot tip over.",
    "Herb scissors with five pairs of blades, and a comb to clean them.",
    "Yoghurt maker: seven glasses, eight hours, no plastic touching the milk.",
    "Cake ring, 15 to 30 cm, for people who always own the wrong size.",
    "Tea tin for 200 g with an inner lid. The catch clicks when it is tight.",
    "Sous-vide stick, 1,100 W, holds 0.2 °C. Clamps to any pot with a rim up to 28 mm.",
    "Repair kit: seals, screws, springs and feet for everything we have sold since 2011.",
)

LANGUAGES = ("German", "French", "Brazilian Portuguese", "Japanese", "Polish", "Arabic")

QUESTIONS = (
    "where is my parcel",
    "change the delivery address after ordering",
    "send back a machine that was used once",
    "time until a refund arrives",
    "pay by invoice as a company",
    "pay in instalments",
    "redeem two vouchers in one order",
    "find the serial number",
    "register for the five-year warranty",
    "warranty without the receipt",
    "repair something myself without losing the warranty",
    "buy a single spare part",
    "descale an espresso machine",
    "descale a kettle without vinegar",
    "clean a burr grinder",
    "season a cast-iron pan again",
    "remove rust from a carbon steel knife",
    "sharpen a serrated knife",
    "choose a pan for induction",
    "choose between a blade and a burr grinder",
    "grind size for a moka pot",
    "water hardness for coffee",
    "keep sourdough bread fresh",
    "stop rice from sticking",
    "cook chickpeas under pressure",
    "safe temperature for poultry",
    "make yoghurt without a machine",
    "freeze egg whites",
    "dishwasher leaves a white film",
    "dishwasher smells",
    "fridge is humming",
    "oven heats unevenly",
    "hob shows E4",
    "connect the probe to a new phone",
    "use the app without an account",
    "delete my account and all data",
    "turn off the newsletter",
    "reset a forgotten password",
    "report a phishing mail in your name",
    "sell your products in my shop",
    "visit the works",
    "recycle an old machine",
    "recycle coffee capsules",
    "power use of a rice cooker on keep-warm",
    "noise of a blender in decibels",
    "machines that run on 110 volts",
    "gift wrapping and a card",
    "opening hours over the holidays",
)

PHRASINGS = (
    "{}",
    "How can I find out about this: {}?",
    "{} please, I could not find it on your page",
    "FAQ: {}",
    "Customer asks: {}. Which article answers this?",
)


def chat(model: str) -> Iterator[dict[str, Any]]:
    """300 tickets: each problem ten times, each time with another opening and ending."""
    for number, (turn, problem) in enumerate(product(range(10), PROBLEMS), start=1):
        place = PROBLEMS.index(problem)
        opening, ending = OPENINGS[(turn + place) % 10], ENDINGS[(3 * turn + place) % 10]
        yield {
            "custom_id": f"ticket-{number:03}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [
                    {"role": "system", "content": CLASSIFY},
                    {"role": "user", "content": f"{opening} {problem}. {ending}"},
                ],
                "temperature": 0,
                "max_tokens": 96,
            },
        }


def responses(model: str) -> Iterator[dict[str, Any]]:
    """240 translations: forty product texts into six languages."""
    for language, (number, text) in product(LANGUAGES, enumerate(PRODUCTS, start=1)):
        yield {
            "custom_id": f"product-{number:02}-{language.lower().replace(' ', '-')}",
            "method": "POST",
            "url": "/v1/responses",
            "body": {
                "model": model,
                "instructions": f"{TRANSLATE} The language: {language}.",
                "input": text,
                "max_output_tokens": 160,
            },
        }


def embeddings(model: str) -> Iterator[dict[str, Any]]:
    """240 questions as typed into a search box."""
    for (number, question), (turn, phrasing) in product(
        enumerate(QUESTIONS, start=1), enumerate(PHRASINGS, start=1)
    ):
        yield {
            "custom_id": f"question-{number:02}-{turn}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model, "input": phrasing.format(question)},
        }


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example inputs.")
    parser.add_argument("--folder", type=Path, default=HERE, help="where to write them")
    parser.add_argument("--chat-model", default="llama3.2", help="model of chat.jsonl and responses.jsonl")
    parser.add_argument("--embedding-model", default="nomic-embed-text", help="model of embeddings.jsonl")
    asked = parser.parse_args()
    write(asked.folder / "chat.jsonl", chat(asked.chat_model))
    write(asked.folder / "responses.jsonl", responses(asked.chat_model))
    write(asked.folder / "embeddings.jsonl", embeddings(asked.embedding_model))


if __name__ == "__main__":
    main()
