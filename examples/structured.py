"""Write JSON that fits a schema, whatever the model would rather say. Needs `pip install 'mixkv[grammar]'`.

python examples/structured.py [model.gguf]
"""

import json
import sys

import mixkv

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["captain", "mate", "cook"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def main() -> None:
    llm = mixkv.load(sys.argv[1] if len(sys.argv) > 1 else None)
    for seed in range(3):
        out = llm.generate("The crew of the ship, as JSON: ", json_schema=PERSON, temperature=0.7, seed=seed)
        print(json.loads(out.text))
    print("The answer is" + llm.generate("The answer is", regex=r" (yes|no)\.", seed=1).text)


if __name__ == "__main__":
    main()
