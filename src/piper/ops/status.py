"""placeholder until the status module lands"""


def collect_status(writer):
    return {}
