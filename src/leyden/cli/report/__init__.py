"""``leyden report``: one self-contained HTML page about one run, or about several side by side.

`command` writes pages, `saved_run` reads run folders, `page` makes the HTML, `svg` draws, `to_wandb` sends pictures.
"""
