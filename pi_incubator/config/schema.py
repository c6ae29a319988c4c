"""The JSON schema by which editors complete and check experiment files.

`python -m pi_incubator.config.schema` writes it to configs/schema.json.
"""

from __future__ import annotations

import json

from pi_incubator.config.by_device import DEVICES
from pi_incubator.config.loader import BASE, FORMAT, SAVED_FORMAT, SCHEMA
from pi_incubator.config.models import ExperimentConfig
from pi_incubator.config.packaged import CONFIGS, SCHEMA_NAME

SCHEMA_PATH = CONFIGS / SCHEMA_NAME


def schema_text() -> str:
    """The schema of an experiment file, as JSON text."""
    schema = ExperimentConfig.model_json_schema()
    schema["properties"] |= {
        BASE: {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {device: {"type": "string"} for device in DEVICES},
                    "required": list(DEVICES),
                    "additionalProperties": False,
                },
            ],
            "description": "File to inherit from, relative to this one; or one for each device.",
        },
        FORMAT: {"const": SAVED_FORMAT, "description": "Format of saved settings; leave it out elsewhere."},
        SCHEMA: {"type": "string", "description": "This schema, for editors."},
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
