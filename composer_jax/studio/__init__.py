"""The studio: composing in a browser, on this machine.

From the inside out: `limits` says what is taken, `panel` holds what was chosen,
`engine` makes images of it, `pictures` shows conditions and reads drawings,
`session` is what one visitor has open, `presets` are the tasks, `app` is the page.
"""
