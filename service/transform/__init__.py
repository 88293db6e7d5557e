"""The pure core: messages in, probabilities or refusals out. No I/O, no clock, no asyncio."""
