"""The embedded source: seeded interactions of any size, with a structure that order-aware models can learn.

Each user walks over the items. The next item is, by a draw of its own at each step,

- a successor of the current item (60 %): each item has four, fixed, with probabilities 0.5, 0.25, 0.15 and 0.1; with
  `order` above 1, which of the four is the likeliest depends on the items before the current one;
- the item eight steps back (10 %): a repeat that only a memory longer than one item can foresee;
- an item of the user's taste (30 %): the items are divided among tastes of about fifty, a user has one, and within a
  taste popularity falls as a power of the rank. With `drift` a share of these draws goes to all items in season
  instead, whatever the taste; each item has one month a year.

Successors are about as popular as the item they follow, so popularity stays what the tastes make it. Users begin with
a few items dealt out in turn, so that every item is met often enough to pass a filter (but for `returns_after`).

With `returns_after` there is something for a long memory to learn. Nearly half of the items are then keepsakes, which
the walk never meets, in groups of five; a user has two groups, one of the first half of the groups and one of the
second, and begins with twenty draws from both. Later come returns: a sign, which is one item that stands nowhere else,
then a keepsake of the user's first group, then one of the second. The last return ends the history, so that leaving one
out asks for the second group's keepsake, and validation for the first's; it comes after a break of `returns_after`
interactions, or up to half as many more. Which groups a user has stands in the session and in earlier returns only: who
sees fewer than `returns_after` interactions at the end must guess among half of the keepsakes. Breaks between earlier
returns are of all lengths from a hundredth of that, length x as likely as x^-1.5: heavy-tailed, as the times between
people's actions are (Barabási, "The origin of bursts and heavy tails in human dynamics", 2005). What comes back soon
teaches a model what to keep for long.

This is no model of people: it serves the first run on a new machine, tests that learning happens, and runs at the size
of real data. `best_ndcg` says what can be reached at most. Users are made in blocks, each from its own seed, so blocks
can be made anywhere, in any order.
"""

from raysrec.data.synthetic.best import best_ndcg
from raysrec.data.synthetic.walk import blocks, synthesize, synthesize_block
from raysrec.data.synthetic.world import VERSION, settings_json, sizes

__all__ = ["VERSION", "best_ndcg", "blocks", "settings_json", "sizes", "synthesize", "synthesize_block"]
