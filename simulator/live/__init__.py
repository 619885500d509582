"""An engine fed while it runs: requests come in at any time, tokens are told as they are made.

It is the simulator of `engine`, one iteration at a time (the reference path), on a clock that its
owner moves. What finished requests leave behind is dropped, so that it can run for ever.
"""
