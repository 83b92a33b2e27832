"""The parts of an exported model: signatures, decisions, description, golden requests, proof."""
