"""A page of plain English for the tests of the evaluation, written for them: about 700 tokens of the demo model.

A paragraph is a line, as in the books that the demo model was trained on.
"""

_PARAGRAPHS = """
The old ferry left the landing a little after seven, and nobody on board was in a hurry.

Margaret had taken the seat nearest the rail, with her bag between her feet and her brother's letter in her
hand.

She had read it twice already. It said that the house was sold, that the garden had been cut back to the wall,
and that he would meet her at the bridge if the rain held off.

"You will be cold there," said the captain, who had known her since she was a child. "Come inside, and have
some tea with us."

"Thank you, but I like to see where we are going," she answered.

He laughed, and went back to the wheel; and for a long time there was no sound but the water and the slow beat
of the engine.

The river was wide at that place, and the hills on either side of it were still dark. A few lights had been
lit in the village, and one of them, she knew, must be the window of the schoolroom where her father had
taught for thirty years.

He had been a patient man. He had believed that a boy who could read would never be altogether poor, and that
a girl who could count would never be altogether deceived; and he had kept to that belief through floods, and
fevers, and three headmasters.

When he died the whole village walked behind him to the church, and the smith, who had never learned to write
his name, carried the slate upon which the old man had drawn his maps.

Margaret thought of the slate now. She wondered whether it had been sold with the house, or whether her
brother had been wise enough to keep it.

At the second bend the wind rose. The captain put out his hand to the bell, and rang it three times, as he
always did there, because of the rocks.

"It is only a custom now," he said, when she looked up. "They blew the rocks out of the river the year my son
was born. But my father rang it, and his father rang it, and I should not sleep if I passed this place without
a word to it."

"Then you must go on ringing it," said Margaret, "and your son after you."

"My son is a clerk in the city," said the captain, "and he has never rung a bell in his life."

They came to the bridge before noon. The rain had held off, but her brother was not there; and in his place
there stood a tall boy with a red scarf, who took off his cap, and held out to her, without a single word, a
parcel tied with string.

She knew what it was by the weight of it. She sat down upon the stones of the bridge, and untied the string,
and there, between two folded sheets, lay the slate, with the river still drawn across it in white, and every
village marked, and the rocks.
"""

PROSE = "".join(" ".join(paragraph.split()) + "\n" for paragraph in _PARAGRAPHS.split("\n\n"))
