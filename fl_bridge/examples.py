"""Texts that help shows."""

FEDERATION = """\
name: retina
task: vessel                   # a built-in task, or a YAML file beside this one
server: {host: fl.example.org, port: 8002}
rounds: 35
sites:
  DRIVE: {share_personalized: true}
  STARE: {share_personalized: false}
"""
