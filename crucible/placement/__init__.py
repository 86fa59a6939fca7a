"""Where a job runs, and when it moves: the choice of places, deadlines, queues.

choice.py      the places a job may go, chosen once
deadline.py    the placement policy that meets a deadline
overflow.py    the placement policy that leaves stuck queues
policies.py    deadline policies as pure rules; lookahead.py is the one in use
omniscient.py  the lower bound that they are compared with
simulate.py    policies replayed over recorded spot availability
"""
