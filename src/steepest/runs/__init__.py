"""What the commands that train share: errors that teach, signals, options, whole files, pictures and pages.

No module here knows what is trained; each command has a package of its own above this one.
"""
