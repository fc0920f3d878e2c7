"""OpenAI's APIs over the same streams, for clients that already speak them.

Chat completions, responses and models are one folder each. They share the modules in this folder.
"""
