"""Messages as files in a folder: kombu's names and contents, so that kombu and Celery peers share it.

    <data_folder_in>/
        <ms>_<uuid>.<queue>.msg             waits; kombu's name. A `~r2` before the first dot is ours, see `names`
        .kw/held/<holder>/<n>~<name>        reserved by that holder, whose lease is the file `.lease` in the folder
        .kw/parked/<minute>/<ms>~<name>     waits until that unix time
        .kw/dead/<queue>/<id>.msg, .json    dead letter, and why
        .kw/new/                            is being written

Every step of a message is one rename within one file system, so a kill at any moment leaves it in exactly one place.
Peers never look into `.kw`. kombu itself takes a message by moving it away and deleting it: what a Celery worker
holds when it is killed is lost, as without us.
"""
