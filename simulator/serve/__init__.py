"""An OpenAI-compatible server without a GPU: tokens come when the simulated engine says so.

It speaks HTTP through Starlette and uvicorn (extra `serve`); its times are those of `live`.
"""
