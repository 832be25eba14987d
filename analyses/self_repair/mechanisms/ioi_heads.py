"""GPT-2 small's heads of indirect object identification, as (layer, head): what backup scores can be judged by.

Source: arXiv 2211.00593, figure 2 and section 3.4.
"""

NAME_MOVERS = ((9, 9), (10, 0), (9, 6))
BACKUPS = ((10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9))
