import pytest, time
from tests.compat import clients
def test_probe(celery_to_kw, url):
    pair = celery_to_kw
    import redis, json, base64
    q = "nobody"
    pair.client.do(clients.send_chain_with_chord, q)
    with redis.Redis.from_url(url) as r:
        e = json.loads(r.lindex(q, 0))
        print(json.dumps(json.loads(base64.b64decode(e["body"])), indent=1))
    assert 0
