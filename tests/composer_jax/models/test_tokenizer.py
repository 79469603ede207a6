from __future__ import annotations

import gzip
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from composer_jax.models.tokenizer import Tokenizer

CAPTIONS = [
  'A red fox in the snow.',
  'the red house, the red door & the fox',
  "A dog's breakfast: 12 eggs",
  'a cat and a dog in the snow',
  'Ein grüner Frosch im Gras',
] * 3

ODD_STRINGS = [
  '',
  ' ',
  '\n\t\r\n',
  'a',
  'A  Dog\twith\na   hat ',
  "it's I'm we've they'll he'd don't 'TIS 's '' ''s 'rest",
  '1234 3rd 2½ ² ٣٤ 1,000.50',
  '!!! ... ?!?! a.b.c -- __init__',
  'a photo of <|endoftext|> something',
  '<|startoftext|>a dog<|endoftext|>',
  '<|EndOfText|> <|STARTOFTEXT|> <|end oftext|> a<|endoftext|>b',
  'café cafe\u0301 CAFÉ Å \u212b ﬁ İstanbul ẞ straße ΑΣ ὈΔΥΣΣΕΎΣ',
  '🦊 🦊🦊 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ☃️ a🦊b',
  'שלום עולם مرحبا بالعالم \u202eabc\u202c \u200fb',
  'नमस्ते สวัสดี 日本語のキャプション 한국어 \u1112\u1161\u11ab',
  '\x00 a\x00b \x07\x1b[31mred\x1b[0m \x7f \x85 \ufeff \u200b\u00a0\u3000x',
  '\ufffd \U0010ffff \ue000',
  'e\u0301\u0327\u0301 a\u0323\u0307 \u0301',
  'https://example.com/?q=a&b=c#d user@mail.net C:\\dir\\file.txt',
  '&amp; &lt;b&gt; <b>bold</b> </w> a</w>',
]


def write_clip_vocabulary(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """A vocabulary of CLIP's layout: bytes, bytes that end a word, merges, specials."""
  bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [
      ('a', 'n'), ('t', 'h'), ('th', 'e</w>'), ('r', 'e'), ('re', 'd</w>'),
      ('o', 'f</w>'), ('d', 'o'), ('do', 'g</w>'), ("'", 's</w>'), ('Ã', '©</w>'),
      ('ð', 'Ł'), ('ðŁ', 'ĺ'), ('ðŁ', '¦'), ('Ø', '§'), ('\u00d7', 'ľ'), ('.', '.'),
      ('..', '.</w>'), ('|', '>'), ('<', '|'), ('e', 'n'), ('an', 'd</w>'),
  ]  # fmt: skip
  tokens = bytes_ + [byte + '</w>' for byte in bytes_]
  tokens += [a + b for a, b in merges] + ['<|startoftext|>', '<|endoftext|>']
  vocab_json, merges_txt = folder / 'vocab.json', folder / 'merges.txt'
  vocab_json.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
  lines = ['#version: 0.2', *(f'{a} {b}' for a, b in merges)]
  merges_txt.write_text('\n'.join(lines) + '\n', 'utf-8')
  return vocab_json, merges_txt


def varied_strings() -> list[str]:
  rng = random.Random(7)
  pieces = [piece for text in ODD_STRINGS for piece in text.split(' ')] + [
      'the', 'RED', 'dog', 'and', 'of', 'another', '...', '  ', '\n',
  ]  # fmt: skip
  ranges = [
    (0, 0x1F),  # Control characters.
    (0x20, 0x7E),
    (0x80, 0xFF),
    (0x100, 0x600),
    (0x300, 0x36F),  # Combining marks.
    (0x590, 0x6FF),  # Hebrew and Arabic.
    (0x900, 0xD7FF),
    (0xE000, 0x10FFFF),
    (0x1F300, 0x1FAFF),  # Emoji.
  ]
  strings = list(ODD_STRINGS)
  for _ in range(1000):
    words = rng.choices(pieces, k=rng.randint(1, 12))
    strings.append(rng.choice(['', ' ', '  ']).join(words))
    points = [rng.randint(*rng.choice(ranges)) for _ in range(rng.randint(1, 20))]
    strings.append(''.join(map(chr, points)))
  return strings


def test_clip_vocabulary_gives_the_ids_of_transformers(tmp_path):
  vocab_json, merges_txt = write_clip_vocabulary(tmp_path)
  strings = varied_strings()
  assert len(strings) > 2000
  theirs = transformers.CLIPTokenizer(
    vocab=json.loads(vocab_json.read_text()),
    merges=[tuple(x.split()) for x in merges_txt.read_text().splitlines()[1:]],
  )
  ours = Tokenizer.from_clip(vocab_json, merges_txt)
  with warnings.catch_warnings(record=True):
    tokens = ours.encode(strings)
  expected = theirs(strings, padding='max_length', truncation=True, max_length=77)
  for text, ids, wanted in zip(strings, tokens, expected['input_ids'], strict=True):
    assert ids.tolist() == wanted, text
  assert tokens.dtype == np.int32
  assert tokens.shape == (len(strings), 77)
  assert ours.vocab_size == len(theirs)
  assert ours.start_token == theirs.bos_token_id
  assert ours.end_token == theirs.eos_token_id


def test_all_published_forms_of_the_vocabulary_encode_alike(tmp_path):
  vocab_json, merges_txt = write_clip_vocabulary(tmp_path)
  merges = merges_txt.read_text('utf-8').splitlines()[1:]
  transformers.CLIPTokenizer(
    vocab=json.loads(vocab_json.read_text()), merges=[tuple(x.split()) for x in merges]
  ).save_pretrained(tmp_path / 'new')
  original = tmp_path / 'bpe_simple_vocab_16e6.txt.gz'
  with gzip.open(original, 'wt', encoding='utf-8') as file:
    # More merges than are used, as in the original.
    file.write('\n'.join(['"bpe#version: 0.2"', *merges, 'e d</w>', 'i n']) + '\n')
  size = 512 + len(merges) + 2
  expected = Tokenizer.from_clip(vocab_json, merges_txt)
  for other in (
    Tokenizer.from_tokenizer_json(tmp_path / 'new' / 'tokenizer.json'),
    Tokenizer.from_bpe_file(original, vocab_size=size),
  ):
    strings = varied_strings()
    with warnings.catch_warnings(record=True):
      np.testing.assert_array_equal(other.encode(strings), expected.encode(strings))
    for name in ('vocab_size', 'context_length', 'start_token', 'end_token'):
      assert getattr(other, name) == getattr(expected, name)
  assert Tokenizer.from_bpe_file(original, 9).vocab_size == size + 2
  assert Tokenizer.from_bpe_file(original, 9).context_length == 9


def test_tokenizer_json_may_hold_merges_in_one_string(tmp_path):
  vocab_json, merges_txt = write_clip_vocabulary(tmp_path)
  merges = merges_txt.read_text('utf-8').splitlines()[1:]
  vocab = json.loads(vocab_json.read_text())
  model = {'vocab': vocab, 'merges': merges, 'end_of_word_suffix': '</w>'}
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps({'model': model}))
  with warnings.catch_warnings(record=True):
    expected = Tokenizer.from_clip(vocab_json, merges_txt).encode(ODD_STRINGS)
    got = Tokenizer.from_tokenizer_json(path).encode(ODD_STRINGS)
  np.testing.assert_array_equal(got, expected)
  for changes, message in (
    ({'type': 'WordPiece'}, "of type 'WordPiece' with words that end in '</w>'"),
    ({'end_of_word_suffix': None}, 'words that end in None'),
    ({'vocab': {'a': 0}}, 'lacks 513 tokens that every CLIP vocabulary'),
    ({'merges': ['q z']}, r'tokenizer\.json do not belong together'),
    ({'merges': ['q']}, r'tokenizer\.json does not hold a byte-pair vocabulary'),
    ({'merges': None}, r'tokenizer\.json does not hold a byte-pair vocabulary'),
  ):
    path.write_text(json.dumps({'model': model | changes}))
    with pytest.raises(ValueError, match=message):
      Tokenizer.from_tokenizer_json(path)


def test_a_damaged_bpe_file_is_refused_by_name(tmp_path):
  path = tmp_path / 'bpe.txt.gz'
  whole = gzip.compress(b'"head"\n' + b'a n\nt h\n' * 99)
  for content in (whole[:-9], b'a n\nt h\n', gzip.compress(b'"head"\na b c\n')):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'bpe\.txt\.gz is damaged or not bpe_simple'):
      Tokenizer.from_bpe_file(path)
  with pytest.raises(FileNotFoundError, match=r'absent\.gz'):
    Tokenizer.from_bpe_file(tmp_path / 'absent.gz')


def test_trained_file_is_read_alike_by_transformers(tmp_path):
  ours = Tokenizer.train(CAPTIONS, 560, 24)
  ours.save(tmp_path)
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / 'tokenizer.json')
  )
  with warnings.catch_warnings(record=True):
    tokens = ours.encode(ODD_STRINGS)
  theirs.pad_token = '<|endoftext|>'
  expected = theirs(ODD_STRINGS, padding='max_length', truncation=True, max_length=24)
  assert tokens.tolist() == expected['input_ids']


def test_training_merges_frequent_words_and_keeps_to_the_vocabulary_size():
  tokenizer = Tokenizer.train(iter(CAPTIONS), 560, 16)
  assert tokenizer.vocab_size == 560
  assert (tokenizer.start_token, tokenizer.end_token) == (558, 559)
  tokens = tokenizer.encode(['the RED  fox', 'thered'])
  words = (tokens != tokenizer.end_token).sum(axis=1) - 1
  assert words[0] == 3
  assert words[1] > 1
  assert tokens.max() < tokenizer.vocab_size


def test_vocabulary_stays_small_when_captions_repeat_nothing():
  tokenizer = Tokenizer.train(['fox'], 2000, 16)
  assert tokenizer.vocab_size == 514
  tokens = tokenizer.encode(['🦊 z'])
  assert (tokens != tokenizer.end_token).sum() == 1 + 4 + 1


def test_same_captions_give_the_same_bytes_in_every_process(tmp_path):
  rng = random.Random(0)
  letters = 'abcdefgh'
  words = [''.join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(300)]
  captions = [' '.join(rng.choices(words, k=6)) for _ in range(200)]
  (tmp_path / 'captions.json').write_text(json.dumps(captions))
  program = (
    'import json, sys\n'
    'from composer_jax.models.tokenizer import Tokenizer\n'
    'captions = json.load(open(sys.argv[1]))\n'
    'Tokenizer.train(captions, 1000, 20).save(sys.argv[2])\n'
  )
  for threads in ('1', '3'):
    subprocess.run(
      [sys.executable, '-c', program, tmp_path / 'captions.json', tmp_path / threads],
      env=os.environ
      | {'RAYON_NUM_THREADS': threads, 'PYTHONPATH': os.pathsep.join(sys.path)},
      check=True,
    )
  Tokenizer.train(captions, 1000, 20).save(tmp_path / 'here')
  files = {
    (tmp_path / run / 'tokenizer.json').read_bytes() for run in ('1', '3', 'here')
  }
  assert len(files) == 1
  assert Tokenizer.load(tmp_path / 'here').vocab_size > 800


def test_saved_loaded_and_pickled_tokenizers_encode_alike(tmp_path):
  tokenizer = Tokenizer.train(CAPTIONS, 560, 200)
  tokenizer.save(tmp_path / 'new' / 'folder')
  loaded = Tokenizer.load(tmp_path / 'new' / 'folder')
  for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
    np.testing.assert_array_equal(
      other.encode(ODD_STRINGS), tokenizer.encode(ODD_STRINGS)
    )
    for name in ('vocab_size', 'context_length', 'start_token', 'end_token'):
      assert getattr(other, name) == getattr(tokenizer, name)
  loaded.save(tmp_path)
  again = (tmp_path / 'tokenizer.json').read_bytes()
  assert again == (tmp_path / 'new' / 'folder' / 'tokenizer.json').read_bytes()


def test_long_captions_keep_their_end_token_and_warn_once():
  tokenizer = Tokenizer.train(CAPTIONS, 560, 8)
  long = 'x y z ' * 100
  with pytest.warns(UserWarning, match='2 of 4 captions') as record:
    tokens = tokenizer.encode(['the fox', long, 'q ' * 7, 'q ' * 6])
  assert len(record) == 1
  assert long[:50] in str(record[0].message)
  assert len(str(record[0].message)) < 140
  assert record[0].filename == __file__
  np.testing.assert_array_equal(tokens[:, -1], tokenizer.end_token)
  np.testing.assert_array_equal((tokens == tokenizer.end_token).sum(1), [5, 1, 1, 1])


def test_short_captions_do_not_warn_and_may_be_none():
  tokenizer = Tokenizer.train(CAPTIONS, 560, 8)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    empty = tokenizer.encode([''])
    assert tokenizer.encode([]).shape == (0, 8)
  assert empty.tolist() == [[558] + [559] * 7]


def test_lone_surrogates_become_question_marks():
  tokenizer = Tokenizer.train(CAPTIONS, 560, 8)
  np.testing.assert_array_equal(
    tokenizer.encode(['a \ud800 b']), tokenizer.encode(['a ? b'])
  )


@pytest.mark.parametrize('captions', ['one string', ['a', None], [b'bytes']])
def test_what_is_not_a_list_of_strings_is_refused(captions):
  tokenizer = Tokenizer.train(CAPTIONS, 560, 8)
  with pytest.raises(TypeError, match='string'):
    tokenizer.encode(captions)


def test_sizes_that_are_too_small_are_refused():
  with pytest.raises(ValueError, match='vocab_size is 513; give 514'):
    Tokenizer.train(CAPTIONS, 513, 8)
  with pytest.raises(ValueError, match='context_length is 2'):
    Tokenizer.train(CAPTIONS, 560, 2)


def test_unusable_files_are_refused_by_name(tmp_path):
  vocab_json, merges_txt = write_clip_vocabulary(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'absent\.json'):
    Tokenizer.from_clip(tmp_path / 'absent.json', merges_txt)
  with pytest.raises(FileNotFoundError, match=r'tokenizer\.json'):
    Tokenizer.load(tmp_path)

  vocab = json.loads(vocab_json.read_text())
  del vocab['the</w>']
  vocab_json.write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match=r'vocab\.json and .*merges\.txt do not belong'):
    Tokenizer.from_clip(vocab_json, merges_txt)
  del vocab['z</w>'], vocab['<|endoftext|>']
  vocab_json.write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match=r"lacks 2 tokens .*'<\|endoftext\|>' first"):
    Tokenizer.from_clip(vocab_json, merges_txt)
  vocab_json.write_text('{"a": ')
  with pytest.raises(ValueError, match=r'vocab\.json'):
    Tokenizer.from_clip(vocab_json, merges_txt)

  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'tokenizer\.json is not a tokenizer'):
    Tokenizer.load(tmp_path)
  Tokenizer.train(CAPTIONS, 560, 8).save(tmp_path)
  saved = json.loads((tmp_path / 'tokenizer.json').read_text('utf-8'))
  (tmp_path / 'tokenizer.json').write_text(json.dumps(saved | {'truncation': None}))
  with pytest.raises(ValueError, match='does not say its context length'):
    Tokenizer.load(tmp_path)
